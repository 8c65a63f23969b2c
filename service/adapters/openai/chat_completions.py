"""The model behind Chat Completions, through the openai package's client.

The package takes two seconds and 50 MB to import, so it is imported when the first client is made.
"""

import asyncio
import time
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import msgspec

from service.adapters.openai.wire import read_answer
from service.domain.errors import ChatMemoryError, ModelTimeout, ModelUnavailable
from service.domain.observations import ModelCalled
from service.domain.turns import Answer, Prompt, Usage
from service.ports import Observer

if TYPE_CHECKING:
    import openai

DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"
CLOSED: Final = "The model's client is closed."


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True):
    api_key: str
    base_url: str | None = None
    connect_seconds: float = 5.0
    max_retries: int = 2
    """The one budget of repeated attempts; the client waits between them as the server asks."""
    connections: int = 100


class OpenAIModel:
    """Model at any server that speaks Chat Completions."""

    def __init__(self, settings: ModelSettings, observer: Observer) -> None:
        self._settings = settings
        self._observer = observer
        self._opening = asyncio.Lock()
        self._closed = False
        self._client: openai.AsyncOpenAI | None = None

    async def open(self) -> None:
        """Import the package, connect nothing yet; done by the first call otherwise."""
        await self._opened()

    async def close(self) -> None:
        """Close the connections for good; calls after it raise ModelUnavailable."""
        self._closed = True
        async with self._opening:
            if self._client is not None:
                await self._client.close()

    async def answer(self, prompt: Prompt, *, deadline_seconds: float) -> Answer:
        started = time.monotonic()
        outcome, usage = "internal", Usage()
        try:
            answer = await self._answer(prompt, deadline_seconds)
            outcome, usage = "ok", answer.usage
        except ChatMemoryError as error:
            outcome = error.code
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._observer.observe(
                ModelCalled(
                    model=prompt.model,
                    outcome=outcome,
                    seconds=time.monotonic() - started,
                    input_tokens=usage.input_tokens,
                    output_tokens=usage.output_tokens,
                )
            )
        return answer

    async def _answer(self, prompt: Prompt, deadline_seconds: float) -> Answer:
        try:
            async with asyncio.timeout(deadline_seconds):
                content = await self._post(_body(prompt), deadline_seconds)
        except TimeoutError as error:
            raise ModelTimeout("The model did not answer in time.") from error
        return read_answer(content, prompt.model)

    async def _post(self, body: Mapping[str, Any], deadline_seconds: float) -> bytes:
        """One call with the client's retries; returns the body of its 2xx answer."""
        client = await self._opened()
        faults = import_module("service.adapters.openai.faults")
        httpx = import_module("httpx2")
        try:
            # The low-level call: the typed one walks over every message of the window.
            response = await client.post(
                "/chat/completions",
                cast_to=httpx.Response,
                body=body,
                options={"timeout": self._timeout(deadline_seconds)},
            )
        except Exception as error:
            if self._closed:
                raise ModelUnavailable(CLOSED) from error
            raise faults.translated(error) from error
        return response.content

    async def _opened(self) -> "openai.AsyncOpenAI":
        async with self._opening:
            if self._closed:
                raise ModelUnavailable(CLOSED)
            if self._client is None:
                await asyncio.to_thread(import_module, "openai")
                self._client = _make_client(self._settings)
            return self._client

    def _timeout(self, deadline_seconds: float) -> Any:
        connect = min(self._settings.connect_seconds, deadline_seconds)
        return import_module("httpx2").Timeout(deadline_seconds, connect=connect)


class NoModel:
    """Model where none is configured."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def answer(self, prompt: Prompt, *, deadline_seconds: float) -> Answer:
        del prompt, deadline_seconds
        raise ModelUnavailable(self._reason, retry_after_seconds=60)

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""


def _make_client(settings: ModelSettings) -> "openai.AsyncOpenAI":
    openai = import_module("openai")
    httpx = import_module("httpx2")
    client = openai.AsyncOpenAI(
        api_key=settings.api_key,
        base_url=settings.base_url or DEFAULT_BASE_URL,
        max_retries=settings.max_retries,
        http_client=openai.DefaultAsyncHttpxClient(
            trust_env=False,
            limits=httpx.Limits(
                max_connections=settings.connections,
                max_keepalive_connections=settings.connections,
            ),
            timeout=httpx.Timeout(None, connect=settings.connect_seconds),
        ),
    )
    # What the environment says beside our settings does not count. Its OPENAI_CUSTOM_HEADERS would
    # even replace the key, and the client has no option against them.
    client.organization = None
    client.project = None
    client._custom_headers = {}  # noqa: SLF001  # See above.
    return client


def _body(prompt: Prompt) -> dict[str, Any]:
    body: dict[str, Any] = {"model": prompt.model, "messages": list(prompt.messages)}
    if prompt.temperature is not None:
        body["temperature"] = prompt.temperature
    if prompt.max_output_tokens is not None:
        # OpenAI's reasoning models refuse max_tokens; llama.cpp's server reads both and prefers
        # this one. Never both: OpenAI refuses that too.
        body["max_completion_tokens"] = prompt.max_output_tokens
    return body

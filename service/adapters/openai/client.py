"""The openai package's client, asked through its public low-level call.

The package takes two seconds and 50 MB to import, so it is imported when the first client is made.
The typed calls walk over every message of the window, which costs more than all else here.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from service.adapters.openai.refusals import CallFailed
from service.adapters.openai.retry_after import asked_wait
from service.domain.errors import ModelTimeout, ModelUnavailable

if TYPE_CHECKING:
    import httpx2
    import openai

DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"
CLOSED: Final = "The model's client is closed."
SENT_AT: Final = "chat_memory.sent_at"
CLOSE_SECONDS: Final = 1.0


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True):
    api_key: str
    base_url: str | None = None
    api: Literal["chat_completions", "responses"] = "chat_completions"
    connect_seconds: float = 5.0
    max_retries: int = 2
    """The one budget of repeated attempts; the client waits between them as the server asks."""
    connections: int = 100
    first_token_seconds: float = 30.0
    """From sending the question to the first piece of a streamed answer, per attempt."""
    stall_seconds: float = 20.0
    """Between two pieces; at most ``first_token_seconds``."""
    calls_max: int = 100
    """Calls that may run at once, streams included."""
    breaker_failures: int = 5
    """Outages in a row after which a model is left alone."""
    breaker_seconds: float = 10.0
    """For so long."""
    fallback_models: tuple[str, ...] = ()
    """Asked in this order where the model of a prompt is away."""


@dataclass(slots=True)
class Sending:
    """What goes out with each request of a call, and how many went."""

    headers: Mapping[str, str]
    requests: int = 0
    deadline: float = math.inf
    """In the time of the event loop."""

    @property
    def retries(self) -> int:
        return max(0, self.requests - 1)


_sending: ContextVar[Sending] = ContextVar("chat_memory_sending")
"""Of the call that is being sent; the client has no place for it."""


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """A 2xx answer whose body is still to be read; whoever has it closes it."""

    response: "httpx2.Response"
    attempts: int
    """How many the client needed."""

    @property
    def sent_at(self) -> float:
        """When the last of them was sent, in the time of the event loop."""
        return self.response.request.extensions[SENT_AT]

    async def close(self) -> None:
        """Cut the connection where the body was not read to its end."""
        # What goes wrong with a connection that is given up changes nothing for anybody.
        with suppress(Exception):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.response.aclose()


class Client:
    """Opens answers, with the client's retries."""

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._opening = asyncio.Lock()
        self._closed = False
        self._client: openai.AsyncOpenAI | None = None

    async def open(self) -> "openai.AsyncOpenAI":
        """Import the package, connect nothing yet; done by the first call otherwise."""
        async with self._opening:
            if self._closed:
                raise CallFailed(ModelUnavailable(CLOSED), outage=False)
            if self._client is None:
                await asyncio.to_thread(import_module, "openai")
                self._client = _make_client(self._settings)
            return self._client

    async def close(self) -> None:
        self._closed = True
        async with self._opening:
            if self._client is not None:
                await self._client.close()

    async def post(
        self,
        path: str,
        body: Mapping[str, Any],
        sending: Sending,
        *,
        max_retries: int,
        read_seconds: float,
        deadline: float,
    ) -> Opened:
        """Send the question until it is answered with 2xx.

        ``read_seconds`` bounds each attempt's wait for the status, ``deadline`` all of them, in the
        time of the event loop. A wait that the server asks for and that reaches beyond it is not
        begun. Raises CallFailed.
        """
        sending.deadline = deadline
        token = _sending.set(sending)
        try:
            async with asyncio.timeout_at(deadline):
                client = await self.open()
                response = await client.post(
                    path,
                    cast_to=import_module("httpx2").Response,
                    body=body,
                    options={
                        "timeout": self._timeout(read_seconds),
                        "max_retries": max_retries,
                        "headers": sending.headers,
                    },
                    stream=True,
                )
        except (CallFailed, TimeoutError):
            raise
        except Exception as error:
            raise self.failure(error) from error
        finally:
            _sending.reset(token)
        # The client says so in a header of its own, for the servers' statistics.
        retries = response.request.headers.get("x-stainless-retry-count", "0")
        return Opened(response=response, attempts=int(retries) + 1)

    async def chunks(self, opened: Opened) -> AsyncGenerator[bytes]:
        """The body as it comes. Raises CallFailed."""
        try:
            async for chunk in opened.response.aiter_bytes():
                yield chunk
        except Exception as error:
            raise self.failure(error) from error

    def failure(self, error: Exception) -> CallFailed:
        if self._closed:
            return CallFailed(ModelUnavailable(CLOSED), outage=False)
        failure: CallFailed = import_module("service.adapters.openai.faults").translated(error)
        return failure

    def _timeout(self, read_seconds: float) -> "httpx2.Timeout":
        connect = min(self._settings.connect_seconds, read_seconds)
        timeout: httpx2.Timeout = import_module("httpx2").Timeout(read_seconds, connect=connect)
        return timeout


def timed_out(*, outage: bool) -> CallFailed:
    return CallFailed(ModelTimeout("The model did not answer in time."), outage=outage)


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
            event_hooks={"request": [_stamp], "response": [_refuse_late]},
        ),
    )
    # What the environment says beside our settings does not count. Its OPENAI_CUSTOM_HEADERS would
    # even replace the key, and the client has no option against them.
    client.organization = None
    client.project = None
    client._custom_headers = {}  # noqa: SLF001  # See above.
    return client


async def _stamp(request: "httpx2.Request") -> None:
    # A request that follows a redirect has the extensions of the one before it.
    if SENT_AT not in request.extensions:
        _sending.get().requests += 1
    request.extensions[SENT_AT] = asyncio.get_running_loop().time()


async def _refuse_late(response: "httpx2.Response") -> None:
    """Keep the client from a wait in which nothing but the deadline would come.

    It obeys this header. So the caller is told at once what the server said.
    """
    wait = asked_wait(response.headers)
    if wait is not None and asyncio.get_running_loop().time() + wait >= _sending.get().deadline:
        response.headers["x-should-retry"] = "false"

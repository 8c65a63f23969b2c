"""The model behind an OpenAI-style server: each call bounded, counted and within its deadline."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, contextmanager

import msgspec
from opentelemetry.trace import NoOpTracer, Tracer

from service.adapters.openai.accounting import Accounts
from service.adapters.openai.attempts import Attempts
from service.adapters.openai.breaker import Breakers
from service.adapters.openai.chat_completions import ChatCompletions
from service.adapters.openai.client import Client, ModelSettings
from service.adapters.openai.listening import Call
from service.adapters.openai.refusals import CallFailed
from service.adapters.openai.responses import Responses
from service.domain.errors import ChatMemoryError, ModelUnavailable, Overloaded
from service.domain.turns import Answer, Delta, Prompt
from service.ports import Clock, Observer

__all__ = ["ModelSettings", "NoModel", "OpenAIModel"]


class OpenAIModel:
    """StreamingModel at any server that speaks Chat Completions or Responses.

    Raises Overloaded past ``calls_max`` calls at once. A model that is away (it failed again and
    again, or 5xx, 429, a time-out or broken answers after all repeats) is followed by the fallback
    models while nothing was told and time is left; where none of them answers either, the error is
    the first one's.
    """

    def __init__(
        self,
        settings: ModelSettings,
        observer: Observer,
        clock: Clock,
        tracer: Tracer | None = None,
    ) -> None:
        """Without a tracer there are no spans; the trace of a request is passed on all the same."""
        self._settings = settings
        self._accounts = Accounts(settings, tracer or NoOpTracer(), observer, clock)
        self._client = Client(settings)
        wire = Responses() if settings.api == "responses" else ChatCompletions()
        self._attempts = Attempts(self._client, wire, settings)
        self._breakers = Breakers(
            failures=settings.breaker_failures,
            open_seconds=settings.breaker_seconds,
            clock=clock,
            observer=observer,
        )
        self._running = 0

    async def open(self) -> None:
        """Import the package, connect nothing yet; done by the first call otherwise."""
        try:
            await self._client.open()
        except CallFailed as failed:
            raise failed.error from failed

    async def close(self) -> None:
        """Close the connections for good; calls after it raise ModelUnavailable."""
        await self._client.close()

    async def answer(self, prompt: Prompt, *, deadline_seconds: float) -> Answer:
        async with aclosing(self._ask(prompt, deadline_seconds, streamed=False)) as pieces:
            [answer] = [piece async for piece in pieces if isinstance(piece, Answer)]
        return answer

    def stream(self, prompt: Prompt, *, deadline_seconds: float) -> AsyncGenerator[Delta | Answer]:
        """Closing the generator hangs up, so that the server stops spending."""
        return self._ask(prompt, deadline_seconds, streamed=True)

    async def _ask(
        self, prompt: Prompt, deadline_seconds: float, *, streamed: bool
    ) -> AsyncGenerator[Delta | Answer]:
        deadline = _now() + deadline_seconds
        told, refused = False, None
        others = [model for model in self._settings.fallback_models if model != prompt.model]
        with self._place():
            for model in (prompt.model, *others):
                asked = msgspec.structs.replace(prompt, model=model)
                call = Call(prompt=asked, streamed=streamed, started=_now(), deadline=deadline)
                try:
                    async with aclosing(self._ask_one(call)) as pieces:
                        async for piece in pieces:
                            told = True
                            yield piece
                except ChatMemoryError as error:
                    if told:
                        raise
                    refused = refused or error
                    if not error.may_retry or _now() >= deadline:
                        break
                else:
                    return
        if refused is not None:
            raise refused

    @contextmanager
    def _place(self) -> Generator[None]:
        if self._running >= self._settings.calls_max:
            raise Overloaded("As many calls of the model are running as may run at once.")
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def _ask_one(self, call: Call) -> AsyncGenerator[Delta | Answer]:
        permit = self._breakers.admit(call.prompt.model)
        account = self._accounts.open(call)
        try:
            async with aclosing(self._attempts.pieces(call, account.sending)) as pieces:
                async for piece in pieces:
                    account.take(piece)
                    if isinstance(piece, Answer):
                        permit.worked()
                    else:
                        permit.began()
                    yield piece
        except CallFailed as failed:
            account.outcome = failed.error.code
            if failed.outage:
                permit.failed()
            raise failed.error from failed.__cause__
        except (asyncio.CancelledError, GeneratorExit):
            # Whoever leaves after the answer has had it.
            if account.outcome != "ok":
                account.outcome = "cancelled"
            raise
        finally:
            permit.release()
            account.close()


class NoModel:
    """StreamingModel where none is configured."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def answer(self, prompt: Prompt, *, deadline_seconds: float) -> Answer:
        del prompt, deadline_seconds
        raise self._refusal()

    async def stream(
        self, prompt: Prompt, *, deadline_seconds: float
    ) -> AsyncGenerator[Delta | Answer]:
        del prompt, deadline_seconds
        raise self._refusal()
        yield  # A function without it would be no generator.

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    def _refusal(self) -> ModelUnavailable:
        return ModelUnavailable(self._reason, retry_after_seconds=60)


def _now() -> float:
    return asyncio.get_running_loop().time()

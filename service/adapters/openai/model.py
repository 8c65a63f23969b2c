"""The model behind an OpenAI-style server: each call bounded, counted and within its deadline."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from service.adapters.openai.attempts import Attempts
from service.adapters.openai.chat_completions import ChatCompletions
from service.adapters.openai.client import Client, ModelSettings
from service.adapters.openai.listening import Call
from service.adapters.openai.refusals import CallFailed
from service.domain.errors import ModelUnavailable
from service.domain.observations import ModelCalled
from service.domain.turns import Answer, Delta, Prompt, Usage
from service.ports import Observer

__all__ = ["ModelSettings", "NoModel", "OpenAIModel"]


class OpenAIModel:
    """StreamingModel at any server that speaks Chat Completions."""

    def __init__(self, settings: ModelSettings, observer: Observer) -> None:
        self._observer = observer
        self._client = Client(settings)
        self._attempts = Attempts(self._client, ChatCompletions(), settings)

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
        async with aclosing(self._call(prompt, deadline_seconds, streamed=False)) as pieces:
            [answer] = [piece async for piece in pieces if isinstance(piece, Answer)]
        return answer

    def stream(self, prompt: Prompt, *, deadline_seconds: float) -> AsyncGenerator[Delta | Answer]:
        """Closing the generator hangs up, so that the server stops spending."""
        return self._call(prompt, deadline_seconds, streamed=True)

    async def _call(
        self, prompt: Prompt, deadline_seconds: float, *, streamed: bool
    ) -> AsyncGenerator[Delta | Answer]:
        now = asyncio.get_running_loop().time()
        call = Call(prompt=prompt, streamed=streamed, started=now, deadline=now + deadline_seconds)
        async with aclosing(self._observed(call)) as pieces:
            async for piece in pieces:
                yield piece

    async def _observed(self, call: Call) -> AsyncGenerator[Delta | Answer]:
        started = time.monotonic()
        outcome, usage = "internal", Usage()
        try:
            async with aclosing(self._attempts.pieces(call)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Answer):
                        outcome, usage = "ok", piece.usage
                    yield piece
        except CallFailed as failed:
            outcome = failed.error.code
            raise failed.error from failed.__cause__
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "cancelled" if outcome == "internal" else outcome
            raise
        finally:
            self._observer.observe(
                ModelCalled(
                    model=call.prompt.model,
                    outcome=outcome,
                    seconds=time.monotonic() - started,
                    input_tokens=usage.input_tokens,
                    output_tokens=usage.output_tokens,
                )
            )


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

"""A model that says what a test tells it to."""

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Any

from service.domain.errors import ModelError
from service.domain.turns import Answer, Delta, Prompt, Usage


class ScriptedModel:
    """Model that answers what it is told, else echoes; keeps its prompts."""

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []
        self.script: list[Exception | Answer] = []
        self.gate: asyncio.Event | None = None
        self.asked = asyncio.Event()
        self.ended = asyncio.Event()
        """Whoever asked does so no more: it has its answer or has gone."""
        self.seconds = 0.0
        """How long it thinks."""
        self.word_gate: asyncio.Semaphore | None = None
        self.breaks_after: int | None = None
        self.told = 0

    async def answer(self, prompt: Prompt, *, deadline_seconds: float) -> Answer:
        self.prompts.append(prompt)
        self.asked.set()
        try:
            await asyncio.sleep(self.seconds)
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self.ended.set()
        said = self.script.pop(0) if self.script else _echo(prompt.messages[-1]["content"])
        if isinstance(said, Exception):
            raise said
        return said

    async def stream(
        self, prompt: Prompt, *, deadline_seconds: float
    ) -> AsyncGenerator[Delta | Answer]:
        """Word by word; each waits for ``word_gate``, if there is one."""
        answer = await self.answer(prompt, deadline_seconds=deadline_seconds)
        for word in re.findall(r"\S+\s*", answer.content or ""):
            if self.word_gate is not None:
                await self.word_gate.acquire()
            if self.breaks_after is not None and self.told >= self.breaks_after:
                raise ModelError("The model's answer broke off.", retryable=True)
            self.told += 1
            yield Delta(text=word)
        if answer.tool_calls:
            yield Delta(tool_calls=answer.tool_calls)
        yield answer


def answer_of(text: str, *, complete: bool = True) -> Answer:
    usage = Usage(input_tokens=5, output_tokens=2, total_tokens=7)
    return Answer(
        content=f"echo: {text}", tool_calls=None, complete=complete, usage=usage, model="m"
    )


def calls_of(*names: str, text: str | None = None, complete: bool = True) -> Answer:
    """An answer that calls a function once for each name, which is the call's id as well."""
    calls = [
        {"id": name, "type": "function", "function": {"name": "look", "arguments": "{}"}}
        for name in names
    ]
    usage = Usage(input_tokens=10, output_tokens=3, total_tokens=13, cached_tokens=4)
    return Answer(content=text, tool_calls=calls, complete=complete, usage=usage, model="m")


def _echo(content: Any) -> Answer:
    return answer_of(content if isinstance(content, str) else f"{len(content)} parts")

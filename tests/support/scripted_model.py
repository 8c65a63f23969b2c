"""A model that says what a test tells it to."""

import asyncio

from service.domain.turns import Answer, Prompt, Usage


class ScriptedModel:
    """Model that answers what it is told, else echoes; keeps its prompts."""

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []
        self.script: list[Exception | Answer] = []
        self.gate: asyncio.Event | None = None
        self.asked = asyncio.Event()

    async def answer(self, prompt: Prompt, *, deadline_seconds: float) -> Answer:
        self.prompts.append(prompt)
        self.asked.set()
        if self.gate is not None:
            await self.gate.wait()
        said = self.script.pop(0) if self.script else answer_of(prompt.messages[-1]["content"])
        if isinstance(said, Exception):
            raise said
        return said


def answer_of(text: str, *, complete: bool = True) -> Answer:
    usage = Usage(input_tokens=5, output_tokens=2, total_tokens=7)
    return Answer(
        content=f"echo: {text}", tool_calls=None, complete=complete, usage=usage, model="m"
    )

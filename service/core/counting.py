"""Counting: the tokens of a message, once, before it is stored."""

import asyncio
from collections.abc import Iterable
from typing import Final

from service.domain.messages import MessageBody
from service.domain.tokens import counted
from service.ports import Tokenizers

CHARACTERS_PER_STEP: Final = 100_000
"""Counted before others get their turn: some milliseconds of work."""


class Counting:
    """Counts by the vocabulary of the model that answers by default."""

    def __init__(self, tokenizers: Tokenizers, *, model: str) -> None:
        self._tokenizers = tokenizers
        self._model = model

    async def counted(self, body: MessageBody) -> MessageBody:
        [one] = await self.all_counted([body])
        return one

    async def all_counted(self, bodies: Iterable[MessageBody]) -> list[MessageBody]:
        """Checked bodies with their counts, in order."""
        tokenizer = await self._tokenizers.of(self._model)
        done: list[MessageBody] = []
        pace = Pace()
        for body in bodies:
            done.append(counted(tokenizer, body))
            await pace.after(body)
        return done


class Pace:
    """Gives others their turn now and then between messages that are counted."""

    def __init__(self) -> None:
        self._work = 0

    async def after(self, body: MessageBody) -> None:
        content = body.content
        self._work += len(content) if isinstance(content, str) else CHARACTERS_PER_STEP // 8
        if self._work >= CHARACTERS_PER_STEP:
            self._work = 0
            await asyncio.sleep(0)

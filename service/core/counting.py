"""Counting: the tokens of a message, once, before it is stored."""

from collections.abc import Iterable
from typing import Final

from service.core.pacing import Pace
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
        pace = Pace(CHARACTERS_PER_STEP)
        for body in bodies:
            done.append(counted(tokenizer, body))
            await pace.spent(characters_of(body))
        return done


def characters_of(body: MessageBody) -> int:
    """What there is to count, roughly."""
    return len(body.content) if isinstance(body.content, str) else CHARACTERS_PER_STEP // 8

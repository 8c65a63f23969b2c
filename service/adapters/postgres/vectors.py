"""What a stored message is found by."""

from collections.abc import Iterable
from typing import Final

import msgspec

from service.core.pacing import Pace
from service.domain.messages import content_of
from service.domain.words import as_vector, searched_text, words_of

BYTES_PER_STEP: Final = 20_000
"""Of texts whose words are found before others get their turn: some ten milliseconds."""


class Worded(msgspec.Struct, frozen=True):
    """An encoded body and the text of its tsvector."""

    body: bytes
    words: str


async def worded(bodies: Iterable[bytes]) -> list[Worded]:
    """To be made before a transaction: it may take longer than one should."""
    bodies = list(bodies)
    return [Worded(*pair) for pair in zip(bodies, await vectors_of(bodies), strict=True)]


async def vectors_of(bodies: Iterable[bytes]) -> list[str]:
    """As ``vector_of``, in order and in steps."""
    vectors: list[str] = []
    pace = Pace(BYTES_PER_STEP)
    for body in bodies:
        vectors.append(vector_of(body))
        await pace.spent(len(body))
    return vectors


def vector_of(body: bytes) -> str:
    """The words of an encoded body as the text of a tsvector."""
    try:
        content = content_of(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # No JSON of ours: PostgreSQL is the one to refuse it, or it has no words.
        return ""
    return as_vector(words_of(searched_text(content)))

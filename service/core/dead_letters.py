"""What operators do about dead letters: look, retry, drop."""

from collections.abc import AsyncGenerator
from typing import Final

from service.domain.errors import ArchiveRefused, DeadLetterNotFound
from service.domain.ids import MessageId, parse_message_id
from service.domain.journal import Batch, DeadLetter
from service.domain.observations import DeadLetterHandled
from service.ports import ArchiveWriter, DeadLetters, Observer

PAGE_MAX: Final = 1000


class DeadLetterDesk:
    """Every change is told with who asked for it, and without what was said."""

    def __init__(self, letters: DeadLetters, writer: ArchiveWriter, observer: Observer) -> None:
        self._letters = letters
        self._writer = writer
        self._observer = observer

    async def page(self, *, after: str | None, limit: int) -> list[DeadLetter]:
        """By id. Raises InvalidValue for a place that is no id."""
        place = None if after is None else parse_message_id(after, "cursor")
        return await self._letters.page(after=place, limit=limit)

    async def find(self, letter_id: str) -> DeadLetter:
        """Raises DeadLetterNotFound, InvalidValue."""
        letter = await self._letters.find(parse_message_id(letter_id, "letter_id"))
        if letter is None:
            raise DeadLetterNotFound
        return letter

    async def retry(self, letter_id: str, *, by: str) -> str | None:
        """Write the entry into the archive, in its place; None, or why it is refused still.

        The archive orders by ids and knows what was cleared and deleted since, so a late entry is
        as one that came in time. It is released after its commit: a death in between leaves a
        letter whose retry changes nothing. Raises DeadLetterNotFound, ArchiveUnavailable; those
        change nothing and are no attempt.
        """
        letter = await self.find(letter_id)
        if letter.entry is None:
            return await self._refused(letter, letter.reason, by)
        try:
            await self._writer.write(Batch(entries=(letter.entry,)))
        except ArchiveRefused as error:
            return await self._refused(letter, error.reason, by)
        await self._letters.release(letter, "archived")
        self._observer.observe(
            DeadLetterHandled(
                id=letter.id,
                shard=letter.shard,
                outcome="archived",
                reason=letter.reason,
                attempts=letter.attempts + 1,
                by=by,
            )
        )
        return None

    async def drop(self, letter_id: str, *, by: str) -> None:
        """The message is gone, for its readers too. Raises DeadLetterNotFound."""
        letter = await self.find(letter_id)
        await self._letters.release(letter, "dropped")
        self._observer.observe(
            DeadLetterHandled(
                id=letter.id,
                shard=letter.shard,
                outcome="dropped",
                reason=letter.reason,
                attempts=letter.attempts,
                by=by,
            )
        )

    async def drop_before(self, before: MessageId, *, by: str) -> int:
        """Drop what is older than an id; how many."""
        dropped = 0
        async for letter in self.walk():
            if letter.id >= before:
                break
            await self.drop(letter.id, by=by)
            dropped += 1
        return dropped

    async def walk(self) -> AsyncGenerator[DeadLetter]:
        """All that there are, by id."""
        after: MessageId | None = None
        while True:
            page = await self._letters.page(after=after, limit=PAGE_MAX)
            for letter in page:
                yield letter
            if len(page) < PAGE_MAX:
                return
            after = page[-1].id

    async def _refused(self, letter: DeadLetter, reason: str, by: str) -> str:
        attempts = await self._letters.refuse_again(letter, reason)
        self._observer.observe(
            DeadLetterHandled(
                id=letter.id,
                shard=letter.shard,
                outcome="refused",
                reason=reason,
                attempts=attempts,
                by=by,
            )
        )
        return reason

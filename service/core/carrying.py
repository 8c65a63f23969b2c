"""Carrying journal entries into the archive, around those that it refuses for their content.

What PostgreSQL refuses in a batch is looked for by halves, from left to right: each half leaves the
journal before the next one is tried, so that an entry that is refused alone is the oldest of its
shard. It is moved to the dead letters in one step. A death at any point leaves every entry in the
journal or among the letters, and what was committed is committed again without effect.
"""

from collections.abc import Sequence
from typing import Final

from service.domain.errors import ArchiveRefused, ChatMemoryError
from service.domain.journal import Acknowledgement, Batch, Entry, Unreadable
from service.domain.observations import BatchFlushed, DeadLettered, FlushFailed
from service.ports import ArchiveWriter, Clock, DeadLetters, Journal, Observer

UNREADABLE: Final = "unreadable"


class Carrier:
    """Commits entries and takes them out of the journal."""

    def __init__(
        self,
        journal: Journal,
        writer: ArchiveWriter,
        letters: DeadLetters,
        *,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._journal = journal
        self._writer = writer
        self._letters = letters
        self._clock = clock
        self._observer = observer

    async def commit(self, entries: Sequence[Entry]) -> None:
        """One transaction. Raises ArchiveRefused, ArchiveUnavailable."""
        started = self._clock.monotonic()
        try:
            written = await self._writer.write(Batch(entries=tuple(entries)))
        except ArchiveRefused:
            # Whoever asks looks for the entry, or tells.
            raise
        except ChatMemoryError as error:
            self._observer.observe(FlushFailed(reason=type(error).__name__, entries=len(entries)))
            raise
        self._observer.observe(
            BatchFlushed(
                entries=len(entries),
                rows=written.rows,
                duplicates=written.duplicates,
                seconds=self._clock.monotonic() - started,
            )
        )

    async def acknowledge(self, shard: int, entries: Sequence[Entry]) -> bool:
        return await self._journal.acknowledge(shard, Acknowledgement(entries=tuple(entries)))

    async def carry(self, shard: int, run: Sequence[Entry | Unreadable]) -> bool:
        """Carry the oldest entries of one shard, letter by letter where it must be.

        False where the shard cannot go on: what is refused is a clear or a deletion, or there are
        too many letters. Raises ArchiveUnavailable, HotUnavailable; what was carried until then
        has left the journal.
        """
        waiting = [list(run)]
        while waiting:
            part = waiting.pop()
            reason = await self._refusal(shard, part)
            if reason is None:
                continue
            if len(part) > 1:
                middle = len(part) // 2
                waiting += [part[middle:], part[:middle]]
            elif not await self._bury(shard, part[0], reason):
                return False
        return True

    async def _refusal(self, shard: int, part: Sequence[Entry | Unreadable]) -> str | None:
        """Commit and acknowledge; why not, where the archive cannot take it as it is."""
        entries = [entry for entry in part if isinstance(entry, Entry)]
        if len(entries) < len(part):
            return UNREADABLE
        try:
            await self.commit(entries)
        except ArchiveRefused as error:
            return error.reason
        await self.acknowledge(shard, entries)
        return None

    async def _bury(self, shard: int, entry: Entry | Unreadable, reason: str) -> bool:
        outcome = await self._letters.bury(shard, entry, reason)
        kind = entry.kind if isinstance(entry, Entry) else UNREADABLE
        name = entry.id if isinstance(entry, Entry) else entry.position
        self._observer.observe(
            DeadLettered(id=name, shard=shard, kind=kind, reason=reason, outcome=outcome)
        )
        return outcome not in {"full", "kept"}

"""Merging the new words of the index, so that no batch of the flusher has to."""

from typing import Final, LiteralString

import asyncpg

from service.adapters.postgres.door import PostgresDoor

# One process at a time merges; another waits for it and then finds little to do.
MERGE: Final[LiteralString] = "SELECT gin_clean_pending_list('messages_by_word')"


class WordIndex:
    """The index of words; a round for a Looper."""

    def __init__(self, door: PostgresDoor) -> None:
        self._door = door
        self._forbidden = False

    async def merge(self) -> None:
        """Nothing depends on it but how fast batches and searches are. Raises ArchiveUnavailable.

        Only the owner of the table may: for another role PostgreSQL does it, later.
        """
        if self._forbidden:
            return
        async with self._door.connection() as connection:
            try:
                await connection.execute(MERGE)
            except asyncpg.InsufficientPrivilegeError:
                self._forbidden = True

"""Search over two tiers: the archive answers, and the journal tells how much it has."""

from service.domain.errors import HotUnavailable
from service.domain.ids import MessageId, last_id_before
from service.ports import FoundMessage, Journal, Search, SearchQuery


class TieredSearch:
    """Search in the archive."""

    def __init__(self, archived: Search, journal: Journal, *, shards: int) -> None:
        self._archived = archived
        self._journal = journal
        self._shards = range(shards)

    async def find(self, query: SearchQuery) -> list[FoundMessage]:
        return await self._archived.find(query)

    async def archived_through(self) -> MessageId | None:
        """Up to the oldest entry of the journal; None while the hot memory is away."""
        try:
            backlog = await self._journal.backlog(self._shards)
        except HotUnavailable:
            return None
        oldest = (shard.oldest_milliseconds for shard in backlog)
        # Shards are read one after another: one that was empty may have an entry since, but none
        # from before the clock was read, which comes first.
        now = min(shard.now_milliseconds for shard in backlog)
        return last_id_before(min([now, *(ms for ms in oldest if ms is not None)]))

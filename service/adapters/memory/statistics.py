"""Statistics in process memory."""

from service.adapters.memory.store import MemoryStore
from service.domain.statistics import ITEMS_MAX, Item, summed
from service.ports import StatisticsQuery


class MemoryStatistics:
    """Statistics in process memory."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def items(self, query: StatisticsQuery) -> list[Item]:
        places = [
            (place, counted)
            for place, counted in self._store.counts.items()
            if place.tenant == query.tenant
            and query.first <= place.day < query.end
            and query.user_id in {None, place.user_id}
        ]
        return summed(places, query.by)[: ITEMS_MAX + 1]

"""Search in process memory: by looking at everything."""

from service.adapters.memory.store import MemoryStore
from service.domain.ids import HIGHEST_ID, ZERO_ID, MessageId, last_id_before
from service.domain.messages import Message
from service.domain.words import has_words, searched_text
from service.ports import FoundMessage, SearchQuery


class MemorySearch:
    """Search in process memory."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def find(self, query: SearchQuery) -> list[FoundMessage]:
        found = [
            FoundMessage(session_id=ref.session_id, message=message)
            for ref, held in self._store.sessions.items()
            if ref.tenant == query.tenant
            and query.session_id in {None, ref.session_id}
            and query.user_id in {None, held.user_id}
            for message in held.messages
            if _matches(query, message)
        ]
        found.sort(key=lambda one: one.message.id, reverse=True)
        return found[: query.limit]

    async def archived_through(self) -> MessageId | None:
        return last_id_before(self._store.now)


def _matches(query: SearchQuery, message: Message) -> bool:
    return (
        (query.after or ZERO_ID) < message.id < (query.before or HIGHEST_ID)
        and query.role in {None, message.role}
        and (query.words is None or has_words(query.words, searched_text(message.content)))
    )

"""Forgetting a user in process memory, and finding the user's sessions."""

from collections.abc import AsyncGenerator

from service.adapters.memory.store import MemoryStore
from service.domain.sessions import SessionRef
from service.ports import Erased


class MemoryErasure:
    """Erasure in process memory."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def erase(self, tenant: str, user_id: str) -> Erased | None:
        refs = _of_user(self._store, tenant, user_id)
        if not refs:
            return None
        records = sum(self._store.erase(ref) for ref in refs)
        return Erased(hot_sessions=len(refs), idempotency_records=records)


class MemoryUserSessions:
    """UserSessions in process memory."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def walk(self, tenant: str, user_id: str) -> AsyncGenerator[SessionRef]:
        for ref in _of_user(self._store, tenant, user_id):
            yield ref


def _of_user(store: MemoryStore, tenant: str, user_id: str) -> list[SessionRef]:
    return [
        ref
        for ref, held in store.sessions.items()
        if ref.tenant == tenant and held.user_id == user_id
    ]

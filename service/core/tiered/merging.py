"""Pure questions about hot state: what it covers, and what it shows together with the archive."""

from collections.abc import Sequence

import msgspec

from service.domain.ids import ZERO_ID
from service.domain.messages import Message, decode_messages, newest
from service.domain.sessions import decode_document
from service.ports import HotState, Recent


def covers(state: HotState, last: int | None) -> bool:
    """Whether ``state`` alone answers for the session, its newest messages and all pinned ones."""
    if not state.known:
        return False
    if state.floor == ZERO_ID:
        return state.pinned_complete or len(state.messages) == state.held
    if state.floor is None or last is None:
        return False
    return state.pinned_complete and len(state.messages) >= last + len(state.pinned)


def hot_recent(state: HotState, last: int | None) -> Recent:
    recent = merged_recent(state, [], decode_messages(state.pinned), last)
    if state.floor != ZERO_ID:
        return recent
    return msgspec.structs.replace(recent, message_count=state.held)


def merged_recent(
    state: HotState,
    older: Sequence[Message],
    pinned: Sequence[Message],
    last: int | None,
    *,
    user_id: str | None = None,
    document: bytes = b"",
) -> Recent:
    """The newest of ``older`` and the hot messages; pinned ones that are older apart."""
    shown = newest([*older, *decode_messages(state.messages)], last)
    first = shown[0].id if shown else None
    return Recent(
        exists=state.exists,
        user_id=state.user_id or user_id,
        document=decode_document(state.document or document),
        messages=tuple(shown),
        pinned=tuple(m for m in pinned if first is None or m.id < first),
        ttl=state.ttl,
    )

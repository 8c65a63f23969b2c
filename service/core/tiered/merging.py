"""Pure questions about hot state: what it covers, and what it shows together with the archive."""

from collections.abc import Sequence

import msgspec

from service.domain.context import Need
from service.domain.ids import ZERO_ID
from service.domain.messages import Message, decode_messages, is_pinned, newest, tokens_in
from service.domain.sessions import decode_document
from service.domain.summaries import decode_summary
from service.ports import HotState, Recent


def covers(state: HotState, need: Need) -> bool:
    """Whether ``state`` alone answers for the session, its newest messages and all pinned ones."""
    if not state.known:
        return False
    if state.floor == ZERO_ID:
        return state.pinned_complete or len(state.messages) == state.held
    if state.floor is None or not state.pinned_complete:
        return False
    if need.tokens is not None:
        return len(state.messages) == state.held and tokens_in(state.messages) >= need.tokens
    return need.last is not None and len(state.messages) >= need.last + len(state.pinned)


def hot_recent(state: HotState, need: Need) -> Recent:
    # Where they are not known apart, the whole session is in the tail, and so are they.
    pinned = state.pinned if state.pinned_complete else tuple(filter(is_pinned, state.messages))
    recent = merged_recent(state, [], decode_messages(pinned), need)
    if state.floor != ZERO_ID:
        return recent
    return msgspec.structs.replace(recent, message_count=state.held)


def merged_recent(
    state: HotState,
    older: Sequence[Message],
    pinned: Sequence[Message],
    need: Need,
    *,
    user_id: str | None = None,
    document: bytes = b"",
    summary: bytes = b"",
) -> Recent:
    """The newest of ``older`` and the hot messages; pinned ones that are older apart."""
    shown = newest([*older, *decode_messages(state.messages)], need.last)
    first = shown[0].id if shown else None
    return Recent(
        exists=state.exists,
        user_id=state.user_id or user_id,
        document=decode_document(state.document or document),
        messages=tuple(shown),
        pinned=tuple(m for m in pinned if first is None or m.id < first),
        ttl=state.ttl,
        summary=decode_summary(state.summary or summary),
    )

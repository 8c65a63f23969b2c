"""What the session scripts answer, as values of the domain."""

import secrets
from typing import Any, Final

import msgspec

from service.adapters.redis.keys import Keys
from service.domain.context import Need, plan
from service.domain.errors import BacklogFull, IdempotencyKeyReused, SessionNotFound, TooLarge
from service.domain.ids import ZERO_ID, MessageId
from service.domain.sessions import SessionDocument, SessionRef
from service.ports import HotState

FIELDS: Final = (
    *("epoch", "known", "exists", "user", "document", "born", "floor", "cleared", "active"),
    *("last", "unflushed", "held", "pinned", "ttl", "want", "lease", "lease_until", "turn"),
    *("budget", "summary", "through", "importing_until", "letter"),
)
"""In the order of session.lua."""

ALL: Final = "-1"
BUDGETED: Final = "-2"
"""How much history: all there is, or as much as the token budget takes."""


class SessionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What every session script is told."""

    ttl_seconds: int
    held_max: int
    backlog_entries_max: int
    backlog_bytes_max: int
    archived: bool


class SessionArguments:
    """Builds the arguments that all session scripts share."""

    def __init__(self, keys: Keys, limits: SessionLimits) -> None:
        self.keys = keys
        self.limits = limits
        self._shared = (
            limits.ttl_seconds * 1000,
            limits.held_max,
            int(limits.archived),
            limits.backlog_entries_max,
            limits.backlog_bytes_max,
        )

    def shared(self, ref: SessionRef) -> list[str | bytes | int | float]:
        return [secrets.token_hex(8), *self._shared, ref.tenant, ref.session_id]

    def state(self, reply: Any) -> HotState:
        ttl, values, pinned, messages = reply
        fields = {name: value.decode() for name, value in zip(FIELDS, values, strict=True)}
        return HotState(
            epoch=fields["epoch"],
            known=fields["known"] != "",
            exists=fields["exists"] != "",
            user_id=fields["user"] or None,
            document=fields["document"].encode(),
            born_id=_identity(fields["born"]),
            floor=_identity(fields["floor"]),
            cleared_through=_identity(fields["cleared"]) or ZERO_ID,
            active_id=_identity(fields["active"]),
            last_id=_identity(fields["last"]),
            unflushed=int(fields["unflushed"] or 0),
            pinned_complete=fields["pinned"] != "",
            held=int(fields["held"] or 0),
            ttl=self.ttl(int(ttl), exists=fields["exists"] != "", own=fields["ttl"]),
            pinned=tuple(pinned),
            messages=tuple(messages),
            summary=fields["summary"].encode(),
            importing=fields["importing_until"],
            letter=_identity(fields["letter"]),
        )

    def ttl(self, milliseconds: int, *, exists: bool, own: str) -> int | None:
        """Seconds that a session stays hot; the full ones while it is unflushed."""
        if not exists:
            return None
        if milliseconds < 0:
            return int(own or self.limits.ttl_seconds)
        return round(milliseconds / 1000)

    def refusal(self, status: bytes) -> Exception:
        """The error for a status that is the same in all scripts."""
        match status:
            case b"not_owner":
                return SessionNotFound()
            case b"reused":
                return IdempotencyKeyReused()
            case b"full":
                return BacklogFull("The write-behind queue is at its limit.")
            case b"too_many":
                return TooLarge.of(
                    "messages", f"a session holds at most {self.limits.held_max} messages here"
                )
            case _:
                return AssertionError(f"unexpected status {status!r}")


def wanted(document: SessionDocument) -> str:
    """History that the session's own context asks for, as the scripts take it."""
    return "" if document.context is None else need_word(plan(document.context).need)


def budget_of(document: SessionDocument) -> str:
    """Token budget that the session's own context sets, as the scripts take it."""
    budget = None if document.context is None else plan(document.context).max_tokens
    return "" if budget is None else str(budget)


def need_word(need: Need) -> str:
    """Needed history as the scripts take it; a number of tokens is told them apart."""
    if need.tokens is not None:
        return BUDGETED
    return ALL if need.last is None else str(need.last)


def _identity(text: str) -> MessageId | None:
    return MessageId(text) if text else None

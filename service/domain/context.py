"""What a model is shown of a session: pure functions of messages and options."""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from service.domain.errors import InvalidValue
from service.domain.messages import PINNED_ROLES, Message

Strategy = Literal["buffer", "window"]

WINDOW_LAST_DEFAULT: Final = 50
WINDOW_LAST_MAX: Final = 1000
BUFFER_MESSAGES_MAX: Final = 10_000
"""Messages that a model may be shown at once; a longer session needs a window."""


class ContextOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How much of a session to show; absent fields fall back to the session's, then to defaults."""

    strategy: Strategy | None = None
    last: int | None = None

    def over(self, fallback: "ContextOptions | None") -> "ContextOptions":
        if fallback is None:
            return self
        return ContextOptions(
            strategy=self.strategy or fallback.strategy,
            last=self.last if self.last is not None else fallback.last,
        )


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A decided strategy; ``last`` is None for the whole session."""

    strategy: Strategy
    last: int | None


def check_options(options: ContextOptions | None, field: str) -> None:
    """Raises InvalidValue where ``last`` is out of range."""
    if options is None or options.last is None:
        return
    if not 1 <= options.last <= WINDOW_LAST_MAX:
        name = f"{field}.last" if field else "last"
        raise InvalidValue.of(name, f"must be 1 to {WINDOW_LAST_MAX}")


def plan(options: ContextOptions) -> Plan:
    strategy = options.strategy or "window"
    match strategy:
        case "buffer":
            return Plan(strategy="buffer", last=None)
        case "window":
            return Plan(strategy="window", last=options.last or WINDOW_LAST_DEFAULT)


def window(chosen: Plan, pinned: Sequence[Message], history: Sequence[Message]) -> list[Message]:
    """Select what to show from a session's messages, both sequences sorted by id.

    ``pinned`` are system and developer messages older than ``history``: they are shown apart from
    the window and never dropped. A tool result whose call fell out of the window is left out, and
    so is a call that was not answered in full: a model refuses half of such a pair.
    """
    if chosen.last is None:
        return _whole_pairs([*pinned, *history])

    spoken = [message for message in history if message.role not in PINNED_ROLES]
    kept = {message.id for message in spoken[-chosen.last :]}
    in_window = (m for m in history if m.role in PINNED_ROLES or m.id in kept)
    return _whole_pairs([*pinned, *in_window])


def _whole_pairs(messages: Sequence[Message]) -> list[Message]:
    """Drop tool results without their call and calls without all of their results."""
    answered = {m.tool_call_id for m in messages if m.role == "tool"}
    open_calls: set[str] = set()
    whole: list[Message] = []
    for message in messages:
        if message.role == "tool":
            if message.tool_call_id in open_calls:
                whole.append(message)
            continue
        calls = {str(call.get("id")) for call in message.tool_calls or ()}
        if calls and not calls <= answered:
            continue
        open_calls |= calls
        whole.append(message)
    return whole

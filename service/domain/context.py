"""What a model is shown of a session: pure functions of messages and options."""

from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec

from service.domain.errors import InvalidValue
from service.domain.messages import PINNED_ROLES, Message

Strategy = Literal["buffer", "window", "tokens", "summary"]
LeftOutReason = Literal["window", "tokens", "summary", "tool_calls"]
"""Why messages are not shown: beyond the window, over the budget, said by the summary, or halves
of a tool call and its results."""

BUDGETED: Final[frozenset[str]] = frozenset({"tokens", "summary"})
"""Strategies that a token budget bounds."""

WINDOW_LAST_DEFAULT: Final = 50
WINDOW_LAST_MAX: Final = 1000
BUDGET_TOKENS_DEFAULT: Final = 8000
BUDGET_TOKENS_MIN: Final = 16
BUDGET_TOKENS_MAX: Final = 2_000_000
BUFFER_MESSAGES_MAX: Final = 10_000
"""Messages that a model may be shown at once; a longer session needs a window."""


TOKENS_PAGE: Final = 200
"""Messages read at a time where a number of tokens is needed."""


class ContextOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How much of a session to show; absent fields fall back to the session's, then to defaults."""

    strategy: Strategy | None = None
    last: int | None = None
    """Messages of a window."""
    max_tokens: int | None = None
    """Budget of the whole input, for tokens and summary."""
    profile: bool | None = None
    """Whether the user's profile is shown."""

    @property
    def decides(self) -> bool:
        """Whether these options say how much history is shown, without a session's."""
        return self.strategy == "buffer" or self.last is not None or self.max_tokens is not None

    def over(self, fallback: "ContextOptions | None") -> "ContextOptions":
        """These options, and of ``fallback`` what they leave open and can use."""
        if fallback is None:
            return self
        strategy = self.strategy or self._implied(fallback)
        return ContextOptions(
            strategy=strategy,
            last=self.last if self.last is not None else fallback.last,
            max_tokens=self.max_tokens if self.max_tokens is not None else fallback.max_tokens,
            profile=self.profile if self.profile is not None else fallback.profile,
        )

    def _implied(self, fallback: "ContextOptions") -> Strategy | None:
        """The strategy that a number asks for; a budget is at home in two of them."""
        theirs = plan(fallback).strategy
        if self.last is not None:
            return "window"
        if self.max_tokens is not None:
            return theirs if theirs in BUDGETED else "tokens"
        return fallback.strategy


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """How much history must be at hand: newest messages, or newest messages of so many tokens.

    None and None: all of it.
    """

    last: int | None = None
    tokens: int | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A decided strategy; ``last`` is for a window, ``max_tokens`` for a budget."""

    strategy: Strategy
    last: int | None = None
    max_tokens: int | None = None
    profile: bool = False

    @property
    def need(self) -> Need:
        return Need(last=self.last, tokens=self.max_tokens)


class ContextTokens(msgspec.Struct, frozen=True, kw_only=True):
    """What each part of a prompt costs. The total has the new message and the template in it."""

    instructions: int
    profile: int
    summary: int
    history: int
    total: int

    def with_history(self, tokens: int) -> "ContextTokens":
        return msgspec.structs.replace(self, history=tokens, total=self.total + tokens)


def check_options(options: ContextOptions | None, field: str) -> None:
    """Raises InvalidValue for a number out of range, or one that its strategy has no use for."""
    if options is None:
        return
    prefix = f"{field}." if field else ""
    strategy, last, budget = options.strategy, options.last, options.max_tokens
    if last is not None:
        if not 1 <= last <= WINDOW_LAST_MAX:
            raise InvalidValue.of(f"{prefix}last", f"must be 1 to {WINDOW_LAST_MAX}")
        if strategy not in {None, "window"} or budget is not None:
            raise InvalidValue.of(f"{prefix}last", "is for the strategy window")
    if budget is not None:
        if not BUDGET_TOKENS_MIN <= budget <= BUDGET_TOKENS_MAX:
            raise InvalidValue.of(
                f"{prefix}max_tokens", f"must be {BUDGET_TOKENS_MIN} to {BUDGET_TOKENS_MAX}"
            )
        if strategy is not None and strategy not in BUDGETED:
            raise InvalidValue.of(f"{prefix}max_tokens", "is for the strategies tokens and summary")


def plan(options: ContextOptions) -> Plan:
    strategy = options.strategy or ("window" if options.max_tokens is None else "tokens")
    profile = options.profile or False
    match strategy:
        case "buffer":
            return Plan(strategy="buffer", profile=profile)
        case "window":
            last = options.last or WINDOW_LAST_DEFAULT
            return Plan(strategy="window", last=last, profile=profile)
        case "tokens" | "summary":
            budget = options.max_tokens or BUDGET_TOKENS_DEFAULT
            return Plan(strategy=strategy, max_tokens=budget, profile=profile)


def window(chosen: Plan, pinned: Sequence[Message], history: Sequence[Message]) -> list[Message]:
    """Select what to show from a session's messages, both sequences sorted by id.

    ``pinned`` are system and developer messages older than ``history``: they are shown apart from
    the window and never dropped. A tool result whose call fell out of the window is left out, and
    so is a call that was not answered in full: a model refuses half of such a pair.
    """
    if chosen.last is None:
        return whole_pairs([*pinned, *history])

    spoken = [message for message in history if message.role not in PINNED_ROLES]
    kept = {message.id for message in spoken[-chosen.last :]}
    in_window = (m for m in history if m.role in PINNED_ROLES or m.id in kept)
    return whole_pairs([*pinned, *in_window])


def fitting(
    messages: Sequence[Message], room: int, cost: Callable[[Message], int]
) -> tuple[list[Message], int]:
    """The end of a conversation that costs at most ``room``, and what it costs.

    System and developer messages are all kept, wherever they stand, and are not charged: their
    cost is the caller's. Without gaps but for those: where a message does not fit, nothing before
    it is shown. A tool call and its results are on one side of the cut.
    """
    spoken = [message for message in messages if message.role not in PINNED_ROLES]
    cut, used, waiting = len(spoken), 0, set[str | None]()
    reached = 0
    for place in range(len(spoken) - 1, -1, -1):
        message = spoken[place]
        reached += cost(message)
        if reached > room:
            break
        if message.role == "tool":
            waiting.add(message.tool_call_id)
        waiting -= {str(call.get("id")) for call in message.tool_calls or ()}
        if not waiting:
            cut, used = place, reached
    kept = {message.id for message in spoken[cut:]}
    return [m for m in messages if m.role in PINNED_ROLES or m.id in kept], used


def results_at_calls(messages: Sequence[Message]) -> list[Message]:
    """Whole pairs in the order that models' servers want: results right behind their calls.

    What was said between the two comes after them; else the order is kept.
    """
    ordered: list[Message] = []
    results: dict[str | None, list[Message]] = {}
    for message in reversed(messages):
        if message.role == "tool":
            results.setdefault(message.tool_call_id, []).insert(0, message)
            continue
        own = [one for call in message.tool_calls or () for one in results.pop(call.get("id"), [])]
        ordered += [*reversed(own), message]
    return ordered[::-1]


def whole_pairs(messages: Sequence[Message]) -> list[Message]:
    """Drop tool results without their call and calls without all of their results.

    A result belongs to the nearest call of its id before it: ids are used again by some models.
    """
    kept: set[int] = set()
    results: dict[str | None, list[int]] = {}
    for place in range(len(messages) - 1, -1, -1):
        message = messages[place]
        if message.role == "tool":
            results.setdefault(message.tool_call_id, []).append(place)
            continue
        calls = {str(call.get("id")) for call in message.tool_calls or ()}
        answers = [results.pop(name, []) for name in calls]
        if all(answers):
            kept.add(place)
            kept.update(place for places in answers for place in places)
    return [message for place, message in enumerate(messages) if place in kept]

"""Prompting: what of a session is shown to a model, and what it costs."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from service.core.counting import CHARACTERS_PER_STEP, characters_of
from service.core.pacing import Pace
from service.domain.context import (
    BUDGETED,
    ContextTokens,
    LeftOutReason,
    Plan,
    fitting,
    results_at_calls,
    whole_pairs,
    window,
)
from service.domain.errors import ContextTooLarge
from service.domain.messages import PINNED_ROLES, Content, Message, MessageBody
from service.domain.sessions import SessionRef
from service.domain.summaries import Summary, summary_text
from service.domain.tokens import (
    REPLY_TOKENS,
    Tokenizer,
    message_tokens,
    stored_tokens,
    text_tokens,
)
from service.ports import Recent, Tokenizers

SUMMARY_TRIGGER: Final = 0.75
"""Share of the room for history beyond which it is time to summarise."""
SUMMARY_BUDGET_MIN: Final = 80
"""Budget below which a summary and its frame would leave no room: none is made."""
SUMMARY_SHARE_MAX: Final = 0.5
"""Share of a budget beyond which a summary, made under a larger one, is not shown."""

ProfileText = Callable[[str, str], Awaitable[str | None]]
"""The part of a prompt that shows a tenant's user's profile; None where there is none."""

Offer = Callable[[SessionRef, Plan, int], None]
"""Tells that a session's summary should be renewed, and what its prompts have beside summary and
conversation, in tokens; returns at once."""

Cost = Callable[[Message], int]
"""Tokens of a message in a prompt."""


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt has beside the session's messages, each a message of its own."""

    instructions: str | None = None
    profile: str | None = None
    message: Content = None
    """The new message; None where none is said."""
    said: tuple[MessageBody, ...] = ()
    """In the same turn after it: calls of tools, and their results."""
    tools: str | None = None
    """What the model is told of tools and of the form of its answer, as JSON: it costs as text."""


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is shown of a session."""

    messages: tuple[Message, ...]
    summary: Summary | None
    tokens: ContextTokens
    tokenizer: str
    tokenizer_known: bool
    reason: LeftOutReason | None
    """Why messages that were read are not shown; None where all are."""
    beside: int
    """Tokens of what is neither conversation nor summary."""
    wants_summary: bool
    """The history since the summary is about to outgrow the budget."""


class Prompting:
    """Selects by strategy and counts by the model's vocabulary."""

    def __init__(self, tokenizers: Tokenizers) -> None:
        self._tokenizers = tokenizers

    async def cost(self, given: Given, model: str) -> int:
        """Tokens of a prompt that shows nothing of the session."""
        return _given_tokens(await self._tokenizers.of(model), given, None).total

    async def shown(self, chosen: Plan, recent: Recent, given: Given, model: str) -> Shown:
        """Raises ContextTooLarge where what is never left out exceeds the budget."""
        tokenizer = await self._tokenizers.of(model)
        summary = _usable(recent.summary, chosen, tokenizer)
        if chosen.strategy in BUDGETED:
            cost = await _costs(tokenizer, [*recent.pinned, *recent.messages])
            return _by_budget(chosen, recent, given, summary, tokenizer, cost)

        fixed = _given_tokens(tokenizer, given, None)
        messages = window(chosen, recent.pinned, recent.messages)
        cost = await _costs(tokenizer, messages)
        history = sum(map(cost, messages))
        return Shown(
            messages=tuple(messages),
            summary=None,
            tokens=fixed.with_history(history),
            tokenizer=tokenizer.vocabulary,
            tokenizer_known=tokenizer.known,
            reason=_why_less(recent, messages, chosen),
            beside=fixed.total,
            wants_summary=False,
        )


def wire_messages(shown: Shown, given: Given) -> list[dict[str, Any]]:
    """The prompt in wire order: instructions, profile, summary, history, the new message.

    Results follow their calls at once, as models' servers want it, whatever was said in between.
    """
    summary = summary_text(shown.summary) if shown.summary else None
    system = (given.instructions, given.profile, summary)
    wire: list[dict[str, Any]] = [
        {"role": "system", "content": text} for text in system if text is not None
    ]
    wire += (wire_message(message) for message in results_at_calls(shown.messages))
    if given.message is not None:
        wire.append({"role": "user", "content": given.message})
    wire += (wire_message(body) for body in given.said)
    return wire


def wire_message(message: MessageBody) -> dict[str, Any]:
    """A stored message as a model's server takes it: nothing that is only ours."""
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        wire["name"] = message.name
    if message.tool_calls is not None:
        wire["tool_calls"] = message.tool_calls
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    return wire


def _by_budget(
    chosen: Plan,
    recent: Recent,
    given: Given,
    summary: Summary | None,
    tokenizer: Tokenizer,
    cost: Cost,
) -> Shown:
    """The newest that fit, beside the summary; a summary for which there is no room is left out."""
    budget = chosen.max_tokens or 0
    history = whole_pairs([*recent.pinned, *recent.messages])
    pinned = sum(cost(message) for message in history if message.role in PINNED_ROLES)
    fixed = _given_tokens(tokenizer, given, summary)
    room = budget - fixed.total - pinned
    if room < 0 and summary is not None:
        return _by_budget(chosen, recent, given, None, tokenizer, cost)
    if room < 0:
        raise ContextTooLarge.over(-room, budget)

    kept, used = fitting(history, room, cost)
    unsaid = sum(
        cost(message)
        for message in history
        if message.role not in PINNED_ROLES and _is_after(message, summary)
    )
    return Shown(
        messages=tuple(kept),
        summary=summary,
        tokens=fixed.with_history(pinned + used),
        tokenizer=tokenizer.vocabulary,
        tokenizer_known=tokenizer.known,
        reason=_why_over(recent, history, kept, summary),
        beside=fixed.total - fixed.summary + pinned,
        wants_summary=(
            chosen.strategy == "summary"
            and budget >= SUMMARY_BUDGET_MIN
            and unsaid > room * SUMMARY_TRIGGER
        ),
    )


def _why_over(
    recent: Recent, history: Sequence[Message], kept: Sequence[Message], summary: Summary | None
) -> LeftOutReason | None:
    shown = {message.id for message in kept}
    left = [message for message in history if message.id not in shown]
    if left:
        return "tokens" if any(_is_after(message, summary) for message in left) else "summary"
    return "tool_calls" if len(history) < len(recent.pinned) + len(recent.messages) else None


def _usable(summary: Summary | None, chosen: Plan, tokenizer: Tokenizer) -> Summary | None:
    if summary is None or chosen.strategy != "summary" or chosen.max_tokens is None:
        return None
    tokens = text_tokens(tokenizer, summary.text)
    return summary if tokens <= chosen.max_tokens * SUMMARY_SHARE_MAX else None


def _given_tokens(tokenizer: Tokenizer, given: Given, summary: Summary | None) -> ContextTokens:
    instructions = text_tokens(tokenizer, given.instructions)
    profile = text_tokens(tokenizer, given.profile)
    summed = text_tokens(tokenizer, summary_text(summary) if summary else None)
    beside = text_tokens(tokenizer, given.tools)
    if given.message is not None:
        beside += message_tokens(tokenizer, MessageBody(role="user", content=given.message))
    beside += sum(message_tokens(tokenizer, body) for body in given.said)
    return ContextTokens(
        instructions=instructions,
        profile=profile,
        summary=summed,
        history=0,
        total=instructions + profile + summed + beside + REPLY_TOKENS,
    )


def cost_of(tokenizer: Tokenizer) -> Cost:
    return lambda message: message_tokens(tokenizer, message)


async def _costs(tokenizer: Tokenizer, messages: Iterable[Message]) -> Cost:
    """What each message costs; those of another vocabulary are counted in steps."""
    costs: dict[str, int] = {}
    pace = Pace(CHARACTERS_PER_STEP)
    for message in messages:
        costs[message.id] = message_tokens(tokenizer, message)
        if stored_tokens(message, tokenizer.vocabulary) is None:
            await pace.spent(characters_of(message))
    return lambda message: costs[message.id]


def _is_after(message: Message, summary: Summary | None) -> bool:
    return summary is None or message.id > summary.through_id


def _why_less(recent: Recent, shown: Sequence[Message], chosen: Plan) -> LeftOutReason | None:
    read = len(recent.pinned) + len(recent.messages)
    if chosen.last is not None:
        spoken = sum(message.role not in PINNED_ROLES for message in recent.messages)
        if spoken >= chosen.last:
            # A full window: whether there is more, the session's count tells.
            return "window"
    return "tool_calls" if len(shown) < read else None

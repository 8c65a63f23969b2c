"""Turns as server-sent events."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

import msgspec
from litestar.response import Stream

from service.api.views import view_turn
from service.core.background import ended, owned_task
from service.core.streamed import Streamed
from service.domain.deltas import Place, Told, parse_place
from service.domain.ids import MessageId, TurnId
from service.domain.turns import Turn

MEDIA_TYPE: Final = "text/event-stream"
KEEP_ALIVE_SECONDS: Final = 10.0
"""Silence after which a comment is sent: proxies close what is silent for a minute."""
KEEP_ALIVE: Final = b": keep-alive\n\n"
HEADERS: Final = {
    "cache-control": "no-cache, no-transform",
    # nginx and those that learnt from it would hold events back.
    "x-accel-buffering": "no",
}
FAILED: Final = frozenset({"failed", "interrupted"})


class StartedView(msgspec.Struct, frozen=True, kw_only=True):
    turn_id: TurnId
    session_id: str
    user_message_id: MessageId


def place_of(last_event_id: str) -> Place:
    """Where a reader stopped. Raises InvalidValue."""
    return parse_place(last_event_id, "Last-Event-ID")


def event_stream(
    streamed: Streamed, *, after: Place | None = None, left: Callable[[], None] | None = None
) -> Stream:
    """The answer of a call that streams; ``left`` is told when its reader goes before the end."""
    headers = dict(HEADERS)
    if streamed.replayed:
        headers["Idempotency-Replayed"] = "true"
    return Stream(_events(streamed, after, left), media_type=MEDIA_TYPE, headers=headers)


async def _events(
    streamed: Streamed, after: Place | None, left: Callable[[], None] | None
) -> AsyncGenerator[bytes]:
    over, turn = False, streamed.turn
    attempt = turn.attempt if after is None else after.attempt
    try:
        if after is None:
            yield _started(turn, attempt)
        async with aclosing(_kept_alive(streamed.events)) as events:
            async for event in events:
                if event is None:
                    yield KEEP_ALIVE
                    continue
                now = event.place.attempt if isinstance(event, Told) else event.attempt
                if now and attempt and now != attempt:
                    # It began again, or went on: what was told before is not part of it.
                    yield _started(turn, now)
                attempt = now or attempt
                over = isinstance(event, Turn)
                yield _encoded(event)
    finally:
        if not over and left is not None:
            left()


def _started(turn: Turn, attempt: str) -> bytes:
    view = StartedView(
        turn_id=turn.turn_id, session_id=turn.session_id, user_message_id=turn.user_message_id
    )
    return _event("turn.started", str(Place(attempt=attempt)), msgspec.json.encode(view))


async def _kept_alive(
    events: AsyncGenerator[Told | Turn],
) -> AsyncGenerator[Told | Turn | None]:
    """The events, and None wherever there was none for a while."""
    upcoming: asyncio.Task[Told | Turn] | None = None
    try:
        while True:
            upcoming = upcoming or owned_task(anext(events), name="turn-event")
            done, _ = await asyncio.wait([upcoming], timeout=KEEP_ALIVE_SECONDS)
            if not done:
                yield None
                continue
            try:
                event = upcoming.result()
            except StopAsyncIteration:
                return
            upcoming = None
            yield event
    finally:
        if upcoming is not None:
            await asyncio.shield(ended(upcoming))
        await asyncio.shield(events.aclose())


def _encoded(event: Told | Turn) -> bytes:
    match event:
        case Told():
            return _event("delta", str(event.place), msgspec.json.encode(_data_of(event)))
        case Turn():
            name = "turn.failed" if event.state in FAILED else "turn.completed"
            return _event(name, f"{event.attempt}.end", msgspec.json.encode(view_turn(event)))


def _data_of(told: Told) -> dict[str, object]:
    data: dict[str, object] = {}
    if told.delta.text:
        data["text"] = told.delta.text
    if told.delta.tool_calls:
        data["tool_calls"] = told.delta.tool_calls
    return data


def _event(name: str, identity: str, data: bytes) -> bytes:
    # JSON has no line breaks of its own.
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (identity.encode(), name.encode(), data)

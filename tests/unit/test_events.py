"""Events of a turn as a reader gets them."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

import msgspec

from service.api.events import event_stream
from service.core.running_turn import without_itself
from service.core.streamed import Streamed
from service.domain.deltas import Place, Told
from service.domain.ids import ZERO_ID, TurnId, message_id
from service.domain.sessions import SessionDocument
from service.domain.summaries import Summary
from service.domain.turns import Delta, Turn
from service.ports import Begun, Recent

RUNNING = Turn(
    turn_id=TurnId("t"),
    session_id="s",
    state="running",
    user_message_id=ZERO_ID,
    started_at=datetime.now(UTC),
)


def told(attempt: str, text: str) -> Told:
    return Told(place=Place(attempt=attempt, characters=len(text)), delta=Delta(text=text))


async def names(*events: Told | Turn, attempt: str = "", after: Place | None = None) -> list[str]:
    async def telling() -> AsyncGenerator[Told | Turn]:
        for event in events:
            yield event

    streamed = Streamed(turn=msgspec.structs.replace(RUNNING, attempt=attempt), events=telling())
    stream: Any = event_stream(streamed, after=after).iterator
    sent = b"".join([part async for part in stream])
    lines = sent.decode().splitlines()
    return [
        f"{name.removeprefix('event: ')} {identity.removeprefix('id: ')}"
        for identity, name in zip(lines[::4], lines[1::4], strict=True)
    ]


async def test_a_reader_is_told_where_a_turn_began_again():
    ended = msgspec.structs.replace(RUNNING, state="completed", attempt="b")
    expected = ["delta a.3-0", "turn.started b.0-0", "delta b.5-0", "turn.completed b.end"]
    events = (told("a", "one"), told("b", "quite"), ended)
    # Known from the beginning, or only by the first piece.
    for attempt in ("a", ""):
        sent = await names(*events, attempt=attempt)
        assert sent == [f"turn.started {attempt}.0-0", *expected]
    assert await names(*events, after=Place(attempt="a")) == expected
    assert await names(*events[1:], after=Place(attempt="a", characters=3)) == expected[1:]
    assert await names(ended, after=Place(attempt="b", characters=5)) == expected[3:]


async def test_an_end_that_nobody_told_of_begins_nothing():
    """A dead process' turn has no attempt any more."""
    interrupted = msgspec.structs.replace(RUNNING, state="interrupted")
    sent = await names(told("a", "one"), interrupted)
    assert sent == ["turn.started .0-0", "delta a.3-0", "turn.failed .end"]


def test_a_turn_is_not_shown_a_summary_of_itself():
    def begun(through: int) -> Begun:
        summary = Summary(
            text="said",
            from_id=message_id(1, 0, 0),
            through_id=message_id(through, 0, 0),
            model="m",
        )
        history = Recent(
            exists=True,
            user_id=None,
            document=SessionDocument(),
            messages=(),
            pinned=(),
            ttl=None,
            summary=summary,
        )
        return Begun(user_message_id=message_id(5, 0, 0), turn_id=TurnId("t"), history=history)

    assert without_itself(begun(4)).history.summary is not None
    assert without_itself(begun(5)).history.summary is None
    assert without_itself(begun(9)).history.summary is None

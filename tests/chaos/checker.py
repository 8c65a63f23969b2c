"""Decides from the clients' log and the final stores whether the promises were kept.

Pure: it sees no server. Where a clear was in doubt (repeated, or never answered) it may take effect
at any later time; such a session is held to what is still certain.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import msgspec

from tests.chaos.records import Call, Exposed, Final, Row, StoredSession

WINDOW = 50
"""Messages that a model is shown where nobody asks for another number."""


class Violation(msgspec.Struct, frozen=True):
    kind: str
    session: str
    detail: str


class Said(msgspec.Struct, frozen=True):
    """One acknowledged message: accepted between ``start`` and ``end``."""

    id: str
    role: str
    text: str
    start: float
    end: float
    archived: bool
    """It was in PostgreSQL when it was acknowledged."""


class Clear(msgspec.Struct, frozen=True):
    start: float
    end: float
    """Infinite where it may still take effect."""
    acked: bool


class History(msgspec.Struct):
    """What the clients know of a session."""

    calls: list[Call] = []
    reads: list[Call] = []
    clears: list[Clear] = []
    said: list[Said] = []

    def may_miss(self, message: Said, seen_until: float) -> bool:
        """Whether a clear may have taken the message by then."""
        return any(c.start < seen_until and c.end > message.start for c in self.clears)

    def must_miss(self, message: Said, seen_from: float) -> bool:
        return any(c.acked and message.end < c.start and c.end < seen_from for c in self.clears)


def check(calls: Sequence[Call], final: Final, exposed: Sequence[Exposed] = ()) -> list[Violation]:
    """All violations, those of the stores first."""
    histories = _histories(calls)
    return [
        *_of_stores(final),
        *(
            Violation("exposed", seen.key, f"lifetime while unflushed at {seen.at:.3f}")
            for seen in exposed
        ),
        *_counted(calls, final),
        *_of_answers(calls),
        *(
            violation
            for session, history in histories.items()
            for violation in _of_session(session, history, final.sessions.get(session))
        ),
    ]


def _histories(calls: Sequence[Call]) -> dict[str, History]:
    histories: dict[str, History] = defaultdict(History)
    for call in sorted(calls, key=lambda call: call.start):
        history = histories[call.session]
        match call.operation:
            case "read":
                history.reads.append(call)
            case "clear":
                history.clears.append(_clear(call))
            case "append" | "chat":
                history.calls.append(call)
                history.said += _said(call)
    return histories


def _clear(call: Call) -> Clear:
    # An attempt without an answer may be on its way still, and run after the one that was answered.
    certain = call.outcome != "unknown" and all(a.status is not None for a in call.attempts)
    certain = certain and all(a.status is not None and a.status < 500 for a in call.attempts)
    acked = call.outcome == "acked"
    return Clear(call.start, call.end if certain else math.inf, acked)


def _said(call: Call) -> Iterator[Said]:
    if call.outcome == "acked":
        for identity, (role, text) in zip(call.ids, call.said, strict=False):
            archived = call.durability == "archived"
            yield Said(identity, role, text, call.start, call.end, archived)


def _of_session(
    session: str, history: History, stored: StoredSession | None
) -> Iterator[Violation]:
    if stored is None:
        if any(not history.may_miss(message, math.inf) for message in history.said):
            yield Violation("lost", session, "the session is gone")
        return
    yield from _lost(session, history, stored)
    yield from _doubled(session, stored.archive)
    yield from _invented(session, history, stored.archive)
    yield from _batches(session, history, stored.archive)
    yield from _accepted_order(session, history)
    yield from _readers(session, stored)
    yield from _turns(session, history)
    yield from _prompts(session, history)
    for read in history.reads:
        yield from _read(session, history, read)


def _lost(session: str, history: History, stored: StoredSession) -> Iterator[Violation]:
    present = {row.id: row for row in stored.archive}
    lowest = stored.archive[0].id if stored.archive else None
    for message in history.said:
        row = present.get(message.id)
        if row is None:
            if not history.may_miss(message, math.inf):
                yield Violation("lost", session, f"{message.id} {message.text}")
            elif lowest is not None and message.id > lowest:
                # A clear takes all that was said before it, not some.
                yield Violation("lost", session, f"{message.id} is gone, {lowest} is not")
        elif history.must_miss(message, math.inf):
            yield Violation("came_back", session, f"{message.id} was cleared")
        elif (row.role, row.text) != (message.role, message.text):
            yield Violation("changed", session, f"{message.id} says something else")


def _doubled(session: str, rows: Sequence[Row]) -> Iterator[Violation]:
    texts = Counter((row.role, row.text) for row in rows)
    for (role, text), count in texts.items():
        if count > 1:
            yield Violation("doubled", session, f"{role} {text!r} is there {count} times")


def _invented(session: str, history: History, rows: Sequence[Row]) -> Iterator[Violation]:
    known = {said for call in history.calls for said in call.said}
    for row in rows:
        if (row.role, row.text) not in known:
            yield Violation("invented", session, f"{row.id}: nobody said {row.text!r} here")


def _batches(session: str, history: History, rows: Sequence[Row]) -> Iterator[Violation]:
    places = {(row.role, row.text): place for place, row in enumerate(rows)}
    for call in history.calls:
        if call.operation != "append" or len(call.texts) == 1:
            continue
        found = [places.get(said) for said in call.said]
        there = [place for place in found if place is not None]
        if there and len(there) != len(found):
            yield Violation("torn", session, f"{len(there)} of a batch of {len(found)} are there")
        elif there and there != list(range(there[0], there[0] + len(there))):
            yield Violation("reordered", session, f"a batch of {len(found)} is not in one piece")


def _accepted_order(session: str, history: History) -> Iterator[Violation]:
    """What was acknowledged before another call began stands before what that call said."""
    acked = [call for call in history.calls if call.outcome == "acked" and call.ids]
    by_end = sorted(acked, key=lambda call: call.end)
    place, highest = 0, ""
    for call in acked:  # In the order of their starts.
        while place < len(by_end) and by_end[place].end < call.start:
            highest = max(highest, *by_end[place].ids)
            place += 1
        if min(call.ids) < highest:
            yield Violation("reordered", session, f"{min(call.ids)} is below {highest}")
        if call.operation == "append" and list(call.ids) != sorted(set(call.ids)):
            yield Violation("reordered", session, "ids of a batch do not ascend")


def _readers(session: str, stored: StoredSession) -> Iterator[Violation]:
    if [row.id for row in stored.archive] != sorted({row.id for row in stored.archive}):
        yield Violation("reordered", session, "the archive's ids do not ascend")
    for reader, rows in stored.readers.items():
        if rows != stored.archive:
            kind = "reordered" if set(rows) == set(stored.archive) else "readers_differ"
            detail = f"{reader} shows {len(rows)} messages, the archive has {len(stored.archive)}"
            yield Violation(kind, session, detail)


def _turns(session: str, history: History) -> Iterator[Violation]:
    """Nothing of another turn stands between a turn's message and its answer.

    Only of turns that were answered at once: one that is repeated is taken up where it was left.
    """
    chats = [call for call in history.calls if call.operation == "chat"]
    ids = sorted(identity for call in chats for identity in call.ids)
    for call in chats:
        if len(call.attempts) == 1 and len(call.ids) == 2:
            between = ids[bisect_right(ids, call.ids[0]) : bisect_left(ids, call.ids[1])]
            if between:
                yield Violation("turns_overlap", session, f"{between[0]} is within another turn")


def _prompts(session: str, history: History) -> Iterator[Violation]:
    """The model was shown what had been said, as far as its window reaches.

    A turn that was repeated tells of the time of its first run.
    """
    for call in history.calls:
        if call.shown < 0 or len(call.attempts) > 1:
            continue
        known = sum(
            message.end < call.start and not history.may_miss(message, call.end)
            for message in history.said
        )
        if call.shown < min(known, WINDOW):
            detail = f"a turn was shown {call.shown} of {known} messages"
            yield Violation("missed", session, detail)


def _read(session: str, history: History, read: Call) -> Iterator[Violation]:
    if read.outcome == "unknown":
        return
    shown = {row.id for row in read.rows}
    ids = [row.id for row in read.rows]
    if ids != sorted(shown):
        yield Violation("reordered", session, "a read does not ascend, or shows a message twice")
    missed = [
        message
        for message in history.said
        if message.end < read.start
        and message.id not in shown
        and _is_asked_for(message, read, ids)
        and not history.may_miss(message, read.end)
        and (message.archived or not read.archive_only)
    ]
    if missed and not ids:
        yield Violation(
            "wrongly_empty", session, f"{len(missed)} messages were acknowledged before"
        )
    elif missed:
        yield Violation("missed", session, f"a read lacks {len(missed)}, so {missed[0].id}")
    for message in [] if read.archive_only else history.said:
        if message.id in shown and history.must_miss(message, read.start):
            yield Violation("came_back", session, f"a read shows {message.id} after its clear")


def _is_asked_for(message: Said, read: Call, ids: Sequence[str]) -> bool:
    full = len(ids) >= read.limit
    if read.after:
        return message.id > read.after and not (full and message.id > ids[-1])
    return not (full and message.id < ids[0])


def _of_stores(final: Final) -> Iterator[Violation]:
    if final.journal_entries:
        yield Violation("journal", "", f"{final.journal_entries} entries are left in the journal")
    for session, stored in final.sessions.items():
        if stored.unflushed:
            yield Violation("journal", session, f"{stored.unflushed} messages count as unflushed")
        if stored.message_count != len(stored.archive):
            detail = f"message_count is {stored.message_count}, of {len(stored.archive)} rows"
            yield Violation("counters", session, detail)
        last = stored.archive[-1].id if stored.archive else None
        if stored.last_id != last:
            yield Violation("counters", session, f"last_id is {stored.last_id}, the row {last}")


def _counted(calls: Sequence[Call], final: Final) -> Iterator[Violation]:
    """The day's counters hold what was ever said: all acknowledged, at most all attempted."""
    acked = sum(len(call.ids) for call in calls if call.outcome == "acked")
    tried = sum(len(call.said) for call in calls if call.operation in {"append", "chat"})
    rows = sum(len(stored.archive) for stored in final.sessions.values())
    if not max(acked, rows) <= final.counted_messages <= tried:
        detail = (
            f"{final.counted_messages} counted, {acked} acknowledged, {tried} tried, {rows} rows"
        )
        yield Violation("counters", "", detail)
    elif all(call.operation != "clear" for call in calls) and final.counted_messages != rows:
        yield Violation("counters", "", f"{final.counted_messages} counted, {rows} rows")


def _of_answers(calls: Sequence[Call]) -> Iterator[Violation]:
    for call in calls:
        for attempt in call.attempts:
            if attempt.status == 500 or attempt.code == "idempotency_key_reused":
                detail = f"{call.operation}: {attempt.status} {attempt.code} from {attempt.api}"
                yield Violation("internal_error", call.session, detail)

"""The checker turns red for each kind of violation, and for nothing lawful."""

from typing import Any

import msgspec
import pytest

from tests.chaos.checker import check
from tests.chaos.records import (
    Attempt,
    Call,
    Exposed,
    Final,
    Row,
    StoredSession,
    answer_to,
    read_calls,
    write_lines,
)


def said(start: float, *texts: str, ids: str = "", **changes: Any) -> Call:
    """Acknowledged with an id a letter, unless told otherwise."""
    call = Call(
        client="c",
        operation="append",
        session="s",
        start=start,
        end=start + 1,
        outcome="acked" if ids else "unknown",
        attempts=(tried(start, 201 if ids else None),),
        texts=texts,
        ids=tuple(ids),
    )
    return msgspec.structs.replace(call, **changes)


def tried(start: float, status: int | None, code: str = "") -> Attempt:
    return Attempt(api="api0", start=start, end=start + 1, status=status, code=code)


def chat(start: float, text: str, ids: str, **changes: Any) -> Call:
    return said(start, text, ids=ids, **({"operation": "chat", "shown": 100} | changes))


def read(start: float, *rows: Row, limit: int = 10, **changes: Any) -> Call:
    shown: dict[str, Any] = {"operation": "read", "outcome": "acked", "rows": rows, "limit": limit}
    return said(start, **(shown | changes))


def clear(start: float, outcome: str = "acked", attempts: int = 1) -> Call:
    answers = [None] * (attempts - 1) + [204 if outcome == "acked" else None]
    return said(
        start,
        operation="clear",
        outcome=outcome,
        attempts=tuple(tried(start, status) for status in answers),
    )


def row(identity: str, text: str, role: str = "user") -> Row:
    return Row(identity, role, text)


def stored(*rows: Row, **changes: Any) -> Final:
    of_session: dict[str, Any] = {
        "readers": {"api0": rows, "api1": rows},
        "archive": rows,
        "message_count": len(rows),
        "last_id": rows[-1].id if rows else None,
    }
    counted = changes.pop("counted", len(rows))
    entries = changes.pop("entries", 0)
    session = StoredSession(**(of_session | changes))
    return Final(sessions={"s": session}, journal_entries=entries, counted_messages=counted)


A, B, C = row("a", "one"), row("b", "two"), row("c", "three")
ONE, TWO, THREE = said(1, "one", ids="a"), said(3, "two", ids="b"), said(5, "three", ids="c")
REPLY = row("c", answer_to("two"), "assistant")
ANSWER = row("b", answer_to("one"), "assistant")


def kinds(calls: list[Call], final: Final, exposed: tuple[Exposed, ...] = ()) -> set[str]:
    return {violation.kind for violation in check(calls, final, exposed)}


LAWFUL: dict[str, tuple[list[Call], Final]] = {
    "all there": ([ONE, TWO, THREE], stored(A, B, C)),
    "a chat": ([chat(1, "one", "ab")], stored(A, ANSWER)),
    "an unknown one is there": ([ONE, said(3, "two")], stored(A, B)),
    "an unknown one is not": ([ONE, said(3, "two")], stored(A)),
    "a refused one is there": ([said(1, "one", outcome="refused")], stored(A)),
    "read in full": ([ONE, TWO, read(5, A, B)], stored(A, B)),
    "read the newest": ([ONE, TWO, read(5, B, limit=1)], stored(A, B)),
    "read what follows": ([ONE, TWO, THREE, read(7, B, limit=1, after="a")], stored(A, B, C)),
    "read beside the write": ([ONE, TWO, read(3.5, A)], stored(A, B)),
    "the archive's read may lag": ([ONE, read(3, archive_only=True)], stored(A)),
    "a turn is shown what was said": ([ONE, chat(3, "two", "bc")], stored(A, B, REPLY)),
    "a repeated turn was shown less": (
        [ONE, chat(3, "two", "bc", shown=0, attempts=(tried(3, None), tried(3.5, 200)))],
        stored(A, B, REPLY),
    ),
    "no read": ([ONE, read(3, outcome="unknown")], stored(A)),
    "cleared": ([ONE, clear(3), read(5)], stored(counted=1)),
    "said after the clear": ([ONE, clear(3), THREE, read(7, C)], stored(C, counted=2)),
    "said beside the clear": ([ONE, clear(1.5)], stored(A)),
    "a clear in doubt took the beginning": (
        [ONE, clear(3, "unknown"), TWO, THREE],
        stored(C, counted=3),
    ),
    "a repeated clear ran late": ([ONE, clear(3, attempts=2), THREE], stored(counted=2)),
    "said at once in either order": (
        [said(1, "one", ids="b"), said(1.5, "two", ids="a")],
        stored(row("a", "two"), row("b", "one")),
    ),
}

BROKEN: dict[str, tuple[str, list[Call], Final]] = {
    "one lost": ("lost", [ONE, TWO], stored(A, counted=2)),
    "a session lost": (
        "lost",
        [ONE],
        Final(sessions={}, journal_entries=0, counted_messages=1),
    ),
    "lost before a clear's time": ("lost", [ONE, clear(3), THREE], stored(counted=2)),
    "a clear in doubt took the middle": (
        "lost",
        [ONE, TWO, THREE, clear(7, "unknown")],
        stored(A, C, counted=3),
    ),
    "an answer lost": ("lost", [chat(1, "one", "ab")], stored(A, counted=2)),
    "doubled": ("doubled", [ONE], stored(A, row("b", "one"))),
    "an unknown one doubled": ("doubled", [said(1, "one")], stored(A, row("b", "one"))),
    "two answers": (
        "doubled",
        [chat(1, "one", "ab")],
        stored(A, ANSWER, row("c", answer_to("one"), "assistant")),
    ),
    "invented": ("invented", [ONE], stored(A, row("b", "nobody"))),
    "changed": ("changed", [ONE], stored(row("a", "other"))),
    "torn": ("torn", [said(1, "one", "two")], stored(A)),
    "a batch in two pieces": (
        "reordered",
        [said(1, "one", "three"), said(1, "two", ids="b")],
        stored(A, B, C),
    ),
    "accepted later, stands before": (
        "reordered",
        [said(1, "one", ids="b"), said(3, "two", ids="a")],
        stored(row("a", "two"), row("b", "one")),
    ),
    "one reader's order": (
        "reordered",
        [ONE, TWO],
        stored(A, B, readers={"api0": (A, B), "api1": (B, A)}),
    ),
    "one reader lacks one": (
        "readers_differ",
        [ONE, TWO],
        stored(A, B, readers={"api0": (A, B), "api1": (A,)}),
    ),
    "a read out of order": ("reordered", [ONE, TWO, read(5, B, A)], stored(A, B)),
    "a read shows one twice": ("reordered", [ONE, read(5, A, A)], stored(A)),
    "a read missed one": ("missed", [ONE, TWO, read(5, A)], stored(A, B)),
    "a read of the newest missed one": (
        "missed",
        [ONE, TWO, THREE, read(7, A, C, limit=2)],
        stored(A, B, C),
    ),
    "a read of what follows missed one": (
        "missed",
        [ONE, TWO, THREE, read(7, C, after="a")],
        stored(A, B, C),
    ),
    "the archive's read lacks what waited for it": (
        "wrongly_empty",
        [said(1, "one", ids="a", durability="archived"), read(3, archive_only=True)],
        stored(A),
    ),
    "a turn was shown nothing": (
        "missed",
        [ONE, chat(3, "two", "bc", shown=0)],
        stored(A, B, REPLY),
    ),
    "wrongly empty": ("wrongly_empty", [ONE, read(3)], stored(A)),
    "wrongly not found": ("wrongly_empty", [ONE, read(3, outcome="refused")], stored(A)),
    "came back": ("came_back", [ONE, clear(3)], stored(A)),
    "came back to a read": ("came_back", [ONE, clear(3), read(5, A)], stored(counted=1)),
    "message_count": ("counters", [ONE], stored(A, message_count=2)),
    "last_id": ("counters", [ONE], stored(A, last_id="b")),
    "the day's counters": ("counters", [ONE], stored(A, counted=2)),
    "the day's counters under clears": ("counters", [ONE, clear(3)], stored(counted=0)),
    "entries left": ("journal", [ONE], stored(A, entries=1)),
    "left as unflushed": ("journal", [ONE], stored(A, unflushed=1)),
    "turns at once": (
        "turns_overlap",
        [chat(1, "one", "ac"), chat(1, "two", "bd")],
        stored(
            A, B, row("c", answer_to("one"), "assistant"), row("d", answer_to("two"), "assistant")
        ),
    ),
    "an internal error": ("internal_error", [said(1, attempts=(tried(1, 500),))], stored()),
}


@pytest.mark.parametrize("name", LAWFUL)
def test_what_is_lawful_passes(name):
    calls, final = LAWFUL[name]
    assert check(calls, final) == []


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_found(name):
    kind, calls, final = BROKEN[name]
    assert kind in kinds(calls, final)


def test_a_lifetime_while_unflushed_is_found():
    assert kinds([ONE], stored(A), (Exposed(at=2.0, key="k"),)) == {"exposed"}


def test_a_log_is_read_as_it_was_written(tmp_path):
    calls = [ONE, chat(3, "two", "bc"), read(5, A, B), clear(7)]
    write_lines(tmp_path / "calls.jsonl", calls)
    assert read_calls(tmp_path / "calls.jsonl") == calls

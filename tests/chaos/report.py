"""What a run was and what came of it, as a page to read."""

import itertools
import statistics
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

import msgspec

from tests.chaos.checker import Violation
from tests.chaos.faults import Done
from tests.chaos.records import Call
from tests.chaos.schedule import Fault, listed

VIOLATIONS_SHOWN = 40


class Outcome(msgspec.Struct, kw_only=True):
    """All there is to know of a finished run."""

    seed: int
    seconds: float
    schedule: list[Fault]
    faults: list[Done]
    calls: list[Call]
    violations: list[Violation]
    drained_seconds: float
    looks: int
    unasked_ends: list[str]
    exits: dict[str, int | None]

    @property
    def acked_messages(self) -> int:
        return sum(len(call.ids) for call in self.calls if call.outcome == "acked")

    @property
    def met(self) -> list[Done]:
        return [done for done in self.faults if done.met]


def markdown(run: Outcome) -> str:
    parts = [
        f"# Chaos run, seed {run.seed}",
        _headline(run),
        _facts(run),
        "## Faults by kind",
        _faults(run),
        "## Calls by outcome",
        _calls(run.calls),
        "## Answers that asked to try again, and none",
        _codes(run.calls),
    ]
    if run.violations:
        parts += ["## Violations", _violations(run.violations)]
        parts += [f"## Schedule of seed {run.seed}", f"```\n{listed(run.schedule)}\n```"]
    return "\n\n".join(parts) + "\n"


def _headline(run: Outcome) -> str:
    made = f"{run.seconds:.0f} s, {len(run.met)} faults, {run.acked_messages:,} messages"
    return f"{made} acknowledged, **{len(run.violations)} violations**."


def _facts(run: Outcome) -> str:
    facts = [
        f"Longest time in which no write was acknowledged: {longest_gap(run.calls):.2f} s",
        f"Journal empty {run.drained_seconds:.2f} s after the last fault and call",
        f"Looks for unflushed entries with a lifetime: {run.looks}",
        f"Processes that ended unasked: {', '.join(run.unasked_ends) or 'none'}",
        f"Exit statuses at SIGTERM: {', '.join(f'{n} {s}' for n, s in run.exits.items())}",
    ]
    return "\n".join(f"- {fact}" for fact in facts)


def longest_gap(calls: Sequence[Call]) -> float:
    """Between two acknowledged writes, whoever's."""
    ends = sorted(c.end for c in calls if c.outcome == "acked" and c.operation != "read")
    return max((after - before for before, after in itertools.pairwise(ends)), default=0.0)


def _faults(run: Outcome) -> str:
    """Recovery: from a fault's end to the first write that began after it and was acknowledged.

    Through the API that it hit, and for what is behind the journal a write that waited for the
    archive.
    """
    rows = ["| fault | on | made | recovery, median | longest |", "|---|---|---|---|---|"]
    groups: dict[tuple[str, str], list[Done]] = {}
    for done in run.met:
        groups.setdefault((done.fault.kind, _group(done.fault.target)), []).append(done)
    acked = _acked_attempts(run.calls)
    for (kind, target), found in sorted(groups.items()):
        times = [t for done in found if (t := _recovery(done, acked)) is not None]
        median = f"{statistics.median(times):.2f} s" if times else "-"
        longest = f"{max(times):.2f} s" if times else "-"
        rows.append(f"| {kind} | {target} | {len(found)} | {median} | {longest} |")
    return "\n".join(rows)


def _group(target: str) -> str:
    return target.replace("0", "").replace("1", "")


def _acked_attempts(calls: Sequence[Call]) -> dict[str, list[tuple[float, float]]]:
    """Start and end of the attempts that acknowledged writes, by API; '' those of the archive."""
    acked: dict[str, list[tuple[float, float]]] = {"": []}
    for call in calls:
        if call.outcome == "acked" and call.operation in {"append", "chat"}:
            last = call.attempts[-1]
            acked.setdefault(last.api, []).append((last.start, last.end))
            if call.durability == "archived":
                acked[""].append((last.start, last.end))
    for attempts in acked.values():
        attempts.sort()
    return acked


def _recovery(done: Done, acked: dict[str, list[tuple[float, float]]]) -> float | None:
    api = next((api for api in ("api0", "api1") if api in done.fault.target), "")
    attempts = acked.get(api, [])
    if done.fault.target == "redis":
        attempts = sorted(attempt for found in acked.values() for attempt in found)
    later = attempts[bisect_left(attempts, (done.end, 0.0)) :]
    return min((end for _, end in later[:200]), default=done.end) - done.end if later else None


def _calls(calls: Sequence[Call]) -> str:
    rows = [
        "| call | acked | of these repeated | refused | unknown | longest acked |",
        "|---|---|---|---|---|---|",
    ]
    for operation in ("append", "chat", "read", "clear"):
        found = [call for call in calls if call.operation == operation]
        outcomes = Counter(call.outcome for call in found)
        repeated = sum(len(c.attempts) > 1 for c in found if c.outcome == "acked")
        longest = max(
            (a.end - a.start for c in found if c.outcome == "acked" for a in c.attempts[-1:]),
            default=0.0,
        )
        counts = f"{outcomes['acked']} | {repeated} | {outcomes['refused']} | {outcomes['unknown']}"
        rows.append(f"| {operation} | {counts} | {longest:.2f} s |")
    return "\n".join(rows)


def _codes(calls: Sequence[Call]) -> str:
    codes = Counter(
        (str(attempt.status or "no answer"), attempt.code)
        for call in calls
        for attempt in call.attempts
        if attempt.code
    )
    return "\n".join(f"- {status} {code}: {n}" for (status, code), n in codes.most_common())


def _violations(violations: Sequence[Violation]) -> str:
    kinds = Counter(violation.kind for violation in violations)
    lines = [", ".join(f"{kind}: {count}" for kind, count in kinds.most_common()), ""]
    lines += [f"- {v.kind} in {v.session}: {v.detail}" for v in violations[:VIOLATIONS_SHOWN]]
    return "\n".join(lines)

"""The checker can fail: each mistake of ``planted`` turns a short run red."""

from collections.abc import Mapping

import msgspec
import pytest

from tests.chaos.planted import BUGS
from tests.chaos.report import markdown
from tests.chaos.run import MIX, Plan, run
from tests.chaos.schedule import Fault

SECONDS = 5.0


class Provocation(msgspec.Struct, frozen=True):
    """What brings a mistake to light."""

    found_as: str | frozenset[str]
    """The kind of violation, or those of which it may be either."""
    faults: tuple[tuple[str, str], ...] = ()
    """Kind and target; several follow one another through the run."""
    each_seconds: float = 0.4
    mix: Mapping[str, float] = msgspec.field(default_factory=lambda: dict(MIX))


REDIS_CUT = (("cut", "api0-redis"), ("cut", "api1-redis"))
FLUSHERS_CUT = (("cut", "flusher0-postgres"), ("cut", "flusher1-postgres"))
REPLIES_TO_FLUSHERS = (("drop_reply", "flusher0-redis"), ("drop_reply", "flusher1-redis"))
COMMITS = (("drop_reply", "flusher0-postgres"), ("drop_reply", "flusher1-postgres"))
REPLIES_TO_APIS = (("drop_reply", "api0-redis"), ("drop_reply", "api1-redis"))
TURNS = {"chat": 1.0, "shared_chat": 3.0}
# Beyond the lease of a turn, which is asked of the other process meanwhile.
PAUSES = (("pause", "api0"), ("pause", "api1"))
# The turn that was taken up elsewhere has its answer, and the session perhaps its next turn.
LATE_ANSWER = frozenset({"doubled", "turns_overlap"})

PROVOCATIONS: dict[str, Provocation] = {
    "trim_before_commit": Provocation("lost", FLUSHERS_CUT * 4),
    "pop_before_insert": Provocation("lost", FLUSHERS_CUT * 4),
    "archive_error_swallowed": Provocation("lost", FLUSHERS_CUT * 4),
    "trim_without_a_look": Provocation("lost", REPLIES_TO_FLUSHERS * 5),
    "lifetime_while_unflushed": Provocation("exposed", (("pause", "postgres"),), 2.0),
    "repeat_without_a_record": Provocation("doubled", REPLIES_TO_APIS * 4),
    "order_by_time": Provocation("reordered"),
    "redis_error_swallowed": Provocation(
        "wrongly_empty", (("pause", "redis"), *REDIS_CUT), 1.5, {**MIX, "read": 80.0}
    ),
    "conflicts_counted_as_rows": Provocation("counters", COMMITS * 4),
    "clear_outside_the_journal": Provocation("came_back", mix={**MIX, "clear": 8.0}),
    "write_after_a_lost_lease": Provocation(LATE_ANSWER, PAUSES * 2, 3.5, TURNS),
    "lease_deleted_by_another": Provocation(LATE_ANSWER, PAUSES * 2, 3.5, TURNS),
    "reads_of_the_archive_alone": Provocation("missed"),
}


def plan_of(provocation: Provocation, bug: str) -> Plan:
    pause = (provocation.each_seconds if provocation.each_seconds > 1 else 0.5) + 0.05
    faults = [
        Fault(at=0.5 + place * pause, kind=kind, target=target, seconds=provocation.each_seconds)
        for place, (kind, target) in enumerate(provocation.faults)
    ]
    last = max((fault.at + fault.seconds for fault in faults), default=0.0)
    return Plan(
        seed=1,
        seconds=max(SECONDS, last + 1),
        faults=faults,
        mix=provocation.mix,
        attempt_seconds=1.5,
        drain_seconds=3.0 if bug else 30.0,
        model_seconds=0.5 if provocation.mix is TURNS else 0.0,
        environment={"CHAOS_BUG": bug, "TURN_LEASE_SECONDS": "1", "SHARD_LEASE_SECONDS": "1"},
        module="tests.chaos.planted",
    )


def test_every_bug_is_provoked():
    assert set(PROVOCATIONS) == set(BUGS)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("bug", PROVOCATIONS)
async def test_a_planted_bug_is_found(bug, tmp_path):
    provocation = PROVOCATIONS[bug]
    outcome = await run(plan_of(provocation, bug), tmp_path)
    found = {violation.kind for violation in outcome.violations}
    wanted = provocation.found_as
    assert found & ({wanted} if isinstance(wanted, str) else wanted), markdown(outcome)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("bug", ["write_after_a_lost_lease", "trim_without_a_look"])
async def test_without_the_bug_the_same_run_is_green(bug, tmp_path):
    outcome = await run(plan_of(PROVOCATIONS[bug], ""), tmp_path)
    assert not outcome.violations, markdown(outcome)
    assert outcome.met

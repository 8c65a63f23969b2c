from collections import Counter

from tests.chaos.schedule import LINKS, SERVICES, STORES, all_faults, draw, listed


def test_a_seed_gives_one_schedule():
    assert listed(draw(7, 60, per_second=1)) == listed(draw(7, 60, per_second=1))
    assert listed(draw(7, 60, per_second=1)) != listed(draw(8, 60, per_second=1))


def test_a_long_run_meets_every_kind_on_every_target():
    made = Counter((fault.kind, fault.target) for fault in draw(1, 600, per_second=0.9))
    assert made.total() >= 300
    assert set(made) == set(all_faults())
    assert {target for _, target in made} == {*LINKS, *SERVICES, *STORES}


def test_a_target_has_one_fault_at_a_time_and_all_end_in_the_run():
    faults = draw(3, 300, per_second=1)
    over: dict[str, float] = {}
    for fault in faults:
        assert over.get(fault.target, 0) <= fault.at
        over[fault.target] = fault.at + fault.seconds
    assert max(over.values()) < 303

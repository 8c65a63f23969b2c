"""The circuit breaker of a model, on a clock of its own."""

import pytest

from service.adapters.openai.breaker import BREAKERS_MAX, Breakers, Permit
from service.adapters.prometheus.metrics import PrometheusObserver
from service.domain.errors import ModelUnavailable
from service.domain.observations import BreakerChanged
from tests.support.clocks import HandClock
from tests.support.stores import Recorder

FAILURES = 3
OPEN_SECONDS = 10.0


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def breakers(clock: HandClock, recorder: Recorder) -> Breakers:
    return Breakers(failures=FAILURES, open_seconds=OPEN_SECONDS, clock=clock, observer=recorder)


def fail(breakers: Breakers, times: int = 1, model: str = "m") -> None:
    for _ in range(times):
        permit = breakers.admit(model)
        permit.failed()
        permit.release()


def work(breakers: Breakers) -> None:
    permit = breakers.admit("m")
    permit.worked()
    permit.release()


def refused_for(breakers: Breakers, model: str = "m") -> int | None:
    with pytest.raises(ModelUnavailable) as caught:
        breakers.admit(model)
    return caught.value.retry_after_seconds


def states(recorder: Recorder) -> list[str]:
    return [change.state for change in recorder.of(BreakerChanged)]


def test_failures_in_a_row_open_it_for_a_while(breakers, clock, recorder):
    fail(breakers, FAILURES)
    assert refused_for(breakers) == 10
    clock.pass_seconds(8.5)
    assert refused_for(breakers) == 2
    assert states(recorder) == ["open"]


def test_a_success_between_failures_keeps_it_closed(breakers, recorder):
    for _ in range(3):
        fail(breakers, FAILURES - 1)
        work(breakers)
    assert states(recorder) == []


def test_calls_that_prove_nothing_neither_open_nor_close_it(breakers, recorder):
    fail(breakers, FAILURES - 1)
    breakers.admit("m").release()
    assert states(recorder) == []
    fail(breakers)
    assert states(recorder) == ["open"]


def half_open(breakers: Breakers, clock: HandClock) -> Permit:
    fail(breakers, FAILURES)
    clock.pass_seconds(OPEN_SECONDS)
    return breakers.admit("m")


def test_half_open_it_lets_one_probe_through_whose_success_closes_it(breakers, clock, recorder):
    probe = half_open(breakers, clock)
    assert refused_for(breakers) == 1
    probe.worked()
    probe.release()
    work(breakers)
    assert states(recorder) == ["open", "half_open", "closed"]


def test_a_probe_whose_answer_began_is_proof_enough(breakers, clock):
    probe = half_open(breakers, clock)
    probe.began()
    work(breakers)
    probe.failed()
    fail(breakers, FAILURES - 1)
    work(breakers)


def test_a_probe_that_fails_opens_it_again(breakers, clock, recorder):
    half_open(breakers, clock).failed()
    assert refused_for(breakers) == 10
    assert states(recorder) == ["open", "half_open", "open"]


def test_a_probe_that_proves_nothing_leaves_its_place_to_the_next(breakers, clock):
    half_open(breakers, clock).release()
    breakers.admit("m").worked()
    work(breakers)


def test_calls_from_before_it_opened_decide_nothing(breakers, clock, recorder):
    early = [breakers.admit("m") for _ in range(4)]
    fail(breakers, FAILURES)
    early[0].worked()
    early[1].failed()
    assert refused_for(breakers) == 10

    clock.pass_seconds(OPEN_SECONDS)
    probe = breakers.admit("m")
    early[2].failed()
    early[3].release()
    assert refused_for(breakers) == 1
    probe.worked()
    assert states(recorder) == ["open", "half_open", "closed"]


def test_each_model_has_its_own(breakers):
    fail(breakers, FAILURES)
    breakers.admit("other").worked()


def test_names_are_forgotten_in_the_order_of_their_use(breakers):
    fail(breakers, FAILURES, model="kept")
    fail(breakers, FAILURES, model="lost")
    for number in range(BREAKERS_MAX - 1):
        assert refused_for(breakers, model="kept")
        breakers.admit(str(number))
    breakers.admit("lost")


def test_the_gauge_shows_the_state_of_models_that_are_configured():
    metrics = PrometheusObserver(version="1", store="memory", models=["m", "n"])
    metrics.observe(BreakerChanged(model="m", state="open"))
    metrics.observe(BreakerChanged(model="named by a caller", state="open"))
    shown = [
        line
        for line in metrics.render()[0].decode().splitlines()
        if line.startswith("chat_memory_model_breaker_state{")
    ]
    assert sorted(shown) == [
        'chat_memory_model_breaker_state{model="m"} 2.0',
        'chat_memory_model_breaker_state{model="n"} 0.0',
    ]

"""What models are measured by: names of the GenAI conventions, and labels that cannot grow."""

from service.adapters.prometheus.metrics import PrometheusObserver
from service.bootstrap.runs import _metrics
from service.domain.observations import ModelCalled
from service.settings import Settings


def observer() -> PrometheusObserver:
    return PrometheusObserver(version="1", store="memory", models=["m"])


def called(model: str = "m", outcome: str = "ok", **changes: float) -> ModelCalled:
    figures = {"seconds": 0.5, "input_tokens": 300, "output_tokens": 20} | changes
    return ModelCalled(model=model, outcome=outcome, **figures)  # pyright: ignore[reportArgumentType]  # counts are given as ints


def shown(metrics: PrometheusObserver, *names: str) -> dict[str, float]:
    lines = [line for line in metrics.render()[0].decode().splitlines() if line[0] != "#"]
    pairs = [line.rsplit(" ", 1) for line in lines]
    return {name: float(value) for name, value in pairs if name.startswith(names)}


LABELS = 'gen_ai_operation_name="chat",gen_ai_provider_name="openai",gen_ai_request_model="m"'


def test_calls_are_measured_by_their_end():
    metrics = observer()
    metrics.observe(called(seconds=0.5))
    metrics.observe(called(seconds=0.25))
    metrics.observe(
        called(outcome="model_timeout", seconds=100, input_tokens=0, output_tokens=0, retries=2)
    )
    name = "gen_ai_client_operation_duration_seconds"
    assert shown(metrics, f"{name}_count", f"{name}_sum") == {
        f'{name}_count{{error_type="",{LABELS}}}': 2,
        f'{name}_sum{{error_type="",{LABELS}}}': 0.75,
        f'{name}_count{{error_type="model_timeout",{LABELS}}}': 1,
        f'{name}_sum{{error_type="model_timeout",{LABELS}}}': 100,
    }
    buckets = shown(metrics, f'{name}_bucket{{error_type="",')
    assert [value for key, value in buckets.items() if 'le="0.32"' in key] == [1]
    assert len(buckets) == 15
    assert shown(metrics, "chat_memory_model_retries_total") == {
        'chat_memory_model_retries_total{model="m"}': 2
    }


def test_tokens_are_measured_where_the_server_counted_them():
    metrics = observer()
    metrics.observe(called())
    metrics.observe(called(input_tokens=0, output_tokens=0))
    name = "gen_ai_client_token_usage"
    assert shown(metrics, f"{name}_count", f"{name}_sum") == {
        f'{name}_count{{{LABELS},gen_ai_token_type="input"}}': 1,
        f'{name}_sum{{{LABELS},gen_ai_token_type="input"}}': 300,
        f'{name}_count{{{LABELS},gen_ai_token_type="output"}}': 1,
        f'{name}_sum{{{LABELS},gen_ai_token_type="output"}}': 20,
    }


def test_the_first_chunk_is_timed_where_an_answer_was_streamed():
    metrics = observer()
    metrics.observe(called())
    metrics.observe(called(first_piece_seconds=0.125))
    name = "gen_ai_client_operation_time_to_first_chunk_seconds"
    assert shown(metrics, f"{name}_count", f"{name}_sum") == {
        f"{name}_count{{{LABELS}}}": 1,
        f"{name}_sum{{{LABELS}}}": 0.125,
    }


def test_callers_who_name_models_make_one_series_of_them_all():
    metrics = observer()
    for number in range(1000):
        metrics.observe(called(model=f"planted-{number}", first_piece_seconds=0.1, retries=1))
    counted = {
        key: value
        for key, value in shown(metrics, "gen_ai_client", "chat_memory_model_retries").items()
        if "_count" in key or "_total" in key
    }
    assert set(counted.values()) == {1000}
    assert len(counted) == 5
    assert all('model="other"' in key for key in counted)
    assert b"planted" not in metrics.render()[0]


def test_the_models_of_the_settings_have_their_names():
    settings = Settings(
        openai_model="first", openai_fallback_models="second, third", summary_model="fourth"
    )
    metrics = _metrics(settings)
    for model in ("first", "second", "third", "fourth", "fifth"):
        metrics.observe(called(model=model, retries=1))
    named = [key.split('"')[1] for key in shown(metrics, "chat_memory_model_retries_total")]
    assert sorted(named) == ["first", "fourth", "other", "second", "third"]

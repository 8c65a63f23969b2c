"""Prometheus metrics, one per thing observed. Names and labels are part of the contract."""

from collections.abc import Collection, Mapping
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from service.domain.observations import (
    BacklogSeen,
    BatchFlushed,
    BreakerChanged,
    BreakerState,
    ComponentFailed,
    DeadLettered,
    DeadLetterHandled,
    FlushFailed,
    HotRead,
    LoopLagSeen,
    MessagesAppended,
    ModelCalled,
    Observation,
    OwnerConflict,
    PoolWaited,
    RequestServed,
    ShardsOwned,
    SummaryEnded,
    TurnEnded,
)

PREFIX: Final = "chat_memory"
FAST_BUCKETS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
GEN_AI: Final = "gen_ai_client"
"""Models are measured by OpenTelemetry's GenAI conventions: their names, labels and buckets."""
GEN_AI_SECONDS: Final = tuple(0.01 * 2**power for power in range(14))
GEN_AI_TOKENS: Final = tuple(4**power for power in range(14))
GEN_AI_LABELS: Final = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
CHAT: Final = ("chat", "openai")
"""The one operation, and the wire format's provider."""
OTHER_MODEL: Final = "other"
BATCH_BUCKETS: Final = (1, 5, 10, 50, 100, 200, 500, 1000, 2000, 5000)
BREAKER_LEVELS: Final[Mapping[BreakerState, int]] = {"closed": 0, "half_open": 1, "open": 2}


class PrometheusObserver:
    """Observer that counts; ``render`` is what /metrics answers."""

    def __init__(self, *, version: str, store: str, models: Collection[str] = ()) -> None:
        # Callers may name any model: only these become values of a label.
        self._models = frozenset(models)
        disable_created_metrics()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        build = Info("build", "Version and store", namespace=PREFIX, registry=self._registry)
        build.info({"version": version, "store": store})
        self._make_memory_metrics()
        self._make_flush_metrics()
        self._make_turn_metrics()
        self._make_model_metrics()
        self._make_process_metrics()

    def render(self) -> tuple[bytes, str]:
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def observe(self, what: Observation) -> None:
        match what:
            case RequestServed():
                self._requests.labels(what.method, what.route, str(what.status)).inc()
                self._request_seconds.labels(what.method, what.route).observe(what.seconds)
            case MessagesAppended() | HotRead() | OwnerConflict():
                self._observe_memory(what)
            case BatchFlushed() | FlushFailed() | ShardsOwned() | BacklogSeen():
                self._observe_flush(what)
            case ComponentFailed() | DeadLettered() | DeadLetterHandled():
                self._observe_trouble(what)
            case TurnEnded() | SummaryEnded() | ModelCalled() | BreakerChanged():
                self._observe_turn(what)
            case PoolWaited():
                self._pool_waits.labels(what.pool).observe(what.seconds)
            case LoopLagSeen():
                self._loop_lag.set(what.seconds)

    def _observe_memory(self, what: MessagesAppended | HotRead | OwnerConflict) -> None:
        match what:
            case MessagesAppended(replayed=True):
                self._duplicates.labels("call").inc(what.count)
            case MessagesAppended():
                self._appended.labels(what.durability).inc(what.count)
            case HotRead():
                self._hot_reads.labels(what.result).inc()
            case OwnerConflict():
                self._owner_conflicts.inc(what.count)

    def _observe_trouble(self, what: ComponentFailed | DeadLettered | DeadLetterHandled) -> None:
        match what:
            case ComponentFailed():
                self._component_failures.labels(what.component, what.reason).inc()
            case DeadLettered():
                if what.outcome == "buried":
                    self._dead_lettered.labels(what.reason).inc()
            case DeadLetterHandled():
                self._handled.labels(what.outcome).inc()

    def _observe_flush(self, what: BatchFlushed | FlushFailed | ShardsOwned | BacklogSeen) -> None:
        match what:
            case BatchFlushed():
                self._flush_seconds.observe(what.seconds)
                self._flush_entries.observe(what.entries)
                self._flush_rows.inc(what.rows)
                self._duplicates.labels("flush").inc(what.duplicates)
            case FlushFailed():
                self._flush_retries.labels(what.reason).inc()
            case ShardsOwned():
                self._shards_owned.set(what.count)
            case BacklogSeen():
                for shard in what.shards:
                    self._journal_entries.labels(str(shard.shard)).set(shard.entries)
                    age = shard.oldest_age_seconds
                    self._journal_age.labels(str(shard.shard)).set(age)
                    self._dead_letters.labels(str(shard.shard)).set(shard.dead_letters)

    def _observe_turn(self, what: TurnEnded | SummaryEnded | ModelCalled | BreakerChanged) -> None:
        match what:
            case TurnEnded():
                self._turns.labels(what.outcome).inc()
                if what.overhead_seconds is not None:
                    self._turn_overhead.observe(what.overhead_seconds)
            case SummaryEnded():
                self._summaries.labels(what.outcome).inc()
            case ModelCalled() | BreakerChanged():
                self._observe_model(what)

    def _observe_model(self, what: ModelCalled | BreakerChanged) -> None:
        match what:
            case BreakerChanged():
                if what.model in self._models:
                    self._breakers.labels(what.model).set(BREAKER_LEVELS[what.state])
            case ModelCalled():
                model = what.model if what.model in self._models else OTHER_MODEL
                # An empty label counts as none.
                error = "" if what.outcome == "ok" else what.outcome
                self._model_seconds.labels(*CHAT, model, error).observe(what.seconds)
                if what.first_piece_seconds is not None:
                    self._first_chunk.labels(*CHAT, model).observe(what.first_piece_seconds)
                for kind, tokens in (("input", what.input_tokens), ("output", what.output_tokens)):
                    # Zero: the server did not count.
                    if tokens:
                        self._model_tokens.labels(*CHAT, model, kind).observe(tokens)
                self._model_retries.labels(model).inc(what.retries)

    def _make_memory_metrics(self) -> None:
        self._appended = self._counter(
            "appended_messages", "Messages accepted, by what they had reached then", "durability"
        )
        self._duplicates = self._counter(
            "duplicates_suppressed",
            "Messages that were there already: repeated calls or batches",
            "by",
        )
        self._hot_reads = self._counter("hot_reads", "Reads, by how they were answered", "result")
        self._owner_conflicts = self._counter(
            "owner_conflicts", "Journal entries that named another owner than the archive"
        )

    def _make_flush_metrics(self) -> None:
        self._flush_seconds = self._histogram(
            "flush_seconds", "Time to commit a batch", FAST_BUCKETS
        )
        self._flush_entries = self._histogram(
            "flush_batch_entries", "Journal entries in a batch", BATCH_BUCKETS
        )
        self._flush_rows = self._counter("flush_rows", "Message rows inserted")
        self._flush_retries = self._counter(
            "flush_retries", "Batches that must be tried again", "reason"
        )
        self._shards_owned = self._gauge("shards_owned", "Shards that this flusher works on")
        self._journal_entries = self._gauge(
            "journal_entries", "Entries not yet in the archive", "shard"
        )
        self._journal_age = self._gauge(
            "journal_oldest_age_seconds", "Age of the oldest entry", "shard"
        )

        self._dead_letters = self._gauge(
            "dead_letters", "Entries that the archive refused and that wait for somebody", "shard"
        )
        self._dead_lettered = self._counter(
            "dead_lettered_entries", "Entries that became dead letters, by SQLSTATE", "reason"
        )

    def _make_turn_metrics(self) -> None:
        self._turns = self._counter("turns", "Turns, by how they ended", "outcome")
        self._turn_overhead = self._histogram(
            "turn_overhead_seconds", "A turn's time without the model's", FAST_BUCKETS
        )
        self._summaries = self._counter("summaries", "Rolling summaries, by outcome", "outcome")

    def _make_model_metrics(self) -> None:
        self._model_seconds = self._histogram(
            "operation_duration_seconds",
            "Time of a model's call, retries included",
            GEN_AI_SECONDS,
            *GEN_AI_LABELS,
            "error_type",
            namespace=GEN_AI,
        )
        self._first_chunk = self._histogram(
            "operation_time_to_first_chunk_seconds",
            "Time until a streamed answer began",
            GEN_AI_SECONDS,
            *GEN_AI_LABELS,
            namespace=GEN_AI,
        )
        self._model_tokens = self._histogram(
            "token_usage",
            "Tokens of a model's call, as its server counts them",
            GEN_AI_TOKENS,
            *GEN_AI_LABELS,
            "gen_ai_token_type",
            namespace=GEN_AI,
        )
        self._model_retries = self._counter(
            "model_retries", "Requests to a model that repeated one", "model"
        )
        self._breakers = self._gauge(
            "model_breaker_state", "Of the circuit breaker: 0 closed, 1 half open, 2 open", "model"
        )
        for model in self._models:
            self._breakers.labels(model).set(BREAKER_LEVELS["closed"])

    def _make_process_metrics(self) -> None:
        self._requests = self._counter(
            "http_requests", "Requests, by route template", "method", "route", "status"
        )
        self._request_seconds = self._histogram(
            "http_request_seconds", "Time to answer", FAST_BUCKETS, "method", "route"
        )
        self._component_failures = self._counter(
            "component_failures", "Failed rounds of background components", "component", "reason"
        )
        self._handled = self._counter(
            "dead_letters_handled", "Dead letters that operators retried or dropped", "outcome"
        )
        self._pool_waits = self._histogram(
            "pool_wait_seconds", "Time until a connection was had", FAST_BUCKETS, "pool"
        )
        self._loop_lag = self._gauge("event_loop_lag_seconds", "How late the event loop runs")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=PREFIX, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, namespace=PREFIX, registry=self._registry)

    def _histogram(
        self,
        name: str,
        text: str,
        buckets: tuple[float, ...],
        *labels: str,
        namespace: str = PREFIX,
    ) -> Histogram:
        return Histogram(
            name, text, labels, namespace=namespace, registry=self._registry, buckets=buckets
        )

"""Log lines for what an operator wants to read about: events with fields, no message text."""

import structlog

from service.domain.observations import (
    BacklogSeen,
    BatchFlushed,
    BreakerChanged,
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

log = structlog.stdlib.get_logger("chat_memory")


class LogObserver:
    """Observer that writes trouble and changes; what only happens often is left to the metrics."""

    def __init__(self) -> None:
        self._shards_owned = -1

    def observe(self, what: Observation) -> None:
        match what:
            case FlushFailed():
                log.warning("flush_failed", reason=what.reason, entries=what.entries)
            case ComponentFailed():
                log.warning("component_failed", component=what.component, reason=what.reason)
            case DeadLettered() | DeadLetterHandled():
                _note_letter(what)
            case OwnerConflict():
                log.error("owner_conflict", count=what.count)
            case ShardsOwned():
                self._note_shards(what.count)
            case SummaryEnded() | ModelCalled() | BreakerChanged():
                _note_model(what)
            case (
                BacklogSeen()
                | BatchFlushed()
                | HotRead()
                | LoopLagSeen()
                | MessagesAppended()
                | PoolWaited()
                | RequestServed()
                | TurnEnded()
            ):
                pass

    def _note_shards(self, count: int) -> None:
        if count != self._shards_owned:
            self._shards_owned = count
            log.info("shards_owned", count=count)


def _note_model(what: SummaryEnded | ModelCalled | BreakerChanged) -> None:
    match what:
        case SummaryEnded(outcome="failed" | "dropped"):
            log.warning("summary_not_made", outcome=what.outcome)
        case ModelCalled() if what.outcome not in {"ok", "cancelled"}:
            log.warning("model_failed", outcome=what.outcome)
        case BreakerChanged():
            # Not the model's name: callers may name any.
            log.warning("model_breaker_changed", state=what.state)
        case _:
            pass


def _note_letter(what: DeadLettered | DeadLetterHandled) -> None:
    match what:
        case DeadLettered(outcome="moved" | "forgotten"):
            pass
        case DeadLettered():
            # Full and kept: its shard stands still until somebody does something about it.
            event = "dead_letter" if what.outcome == "buried" else "shard_stuck"
            log.error(
                event,
                id=what.id,
                shard=what.shard,
                kind=what.kind,
                reason=what.reason,
                outcome=what.outcome,
            )
        case DeadLetterHandled():
            log.warning(
                "dead_letter_handled",
                id=what.id,
                shard=what.shard,
                outcome=what.outcome,
                reason=what.reason,
                attempts=what.attempts,
                by=what.by,
            )

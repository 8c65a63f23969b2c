"""What happened, for metrics and logs: one mechanism outside the logic, without message text."""

from typing import Literal

import msgspec

from service.domain.journal import Refused, ShardBacklog


class MessagesAppended(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    durability: str
    replayed: bool


class HotRead(msgspec.Struct, frozen=True, kw_only=True):
    """Hit: the tail answered. Merged: the archive's rows were added. Filled: and kept hot."""

    result: Literal["hit", "merged", "filled"]


class TurnEnded(msgspec.Struct, frozen=True, kw_only=True):
    outcome: str
    """Its state; ``tool_calls`` where it goes on with their results, and is not over."""
    overhead_seconds: float | None
    """The turn's time less the model's; None where it did not come to its end."""


class ModelCalled(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    outcome: str
    seconds: float
    input_tokens: int
    output_tokens: int
    first_piece_seconds: float | None = None
    """Until a streamed answer began; None where it did not or was not streamed."""
    retries: int = 0
    """Requests after the first one, whether or not the server got it."""


BreakerState = Literal["closed", "half_open", "open"]


class BreakerChanged(msgspec.Struct, frozen=True, kw_only=True):
    """A model is asked again (closed), by one call at a time (half open), or left alone (open)."""

    model: str
    state: BreakerState


SummaryOutcome = Literal["stored", "changed", "failed", "dropped"]
"""Changed: another summary or a clear came first. Dropped: too many were waiting."""


class SummaryEnded(msgspec.Struct, frozen=True, kw_only=True):
    outcome: SummaryOutcome


class BatchFlushed(msgspec.Struct, frozen=True, kw_only=True):
    entries: int
    rows: int
    duplicates: int
    seconds: float


class FlushFailed(msgspec.Struct, frozen=True, kw_only=True):
    """A batch was not committed and will be tried again; ``reason`` is a class name."""

    reason: str
    entries: int


class DeadLettered(msgspec.Struct, frozen=True, kw_only=True):
    """The archive refused an entry for its content; what is not a letter stops its shard."""

    id: str
    shard: int
    kind: str
    reason: str
    """SQLSTATE or a word of ours."""
    outcome: Refused


class DeadLetterHandled(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's doing. Refused: a retry that changed nothing."""

    id: str
    shard: int
    outcome: Literal["archived", "refused", "dropped"]
    reason: str
    attempts: int
    by: str


class OwnerConflict(msgspec.Struct, frozen=True, kw_only=True):
    """Journal entries named another owner than the archive's row, which stands."""

    count: int


class ShardsOwned(msgspec.Struct, frozen=True, kw_only=True):
    count: int


class BacklogSeen(msgspec.Struct, frozen=True, kw_only=True):
    shards: tuple[ShardBacklog, ...]


class ComponentFailed(msgspec.Struct, frozen=True, kw_only=True):
    """A background component's round failed; it goes on."""

    component: str
    reason: str


class RequestServed(msgspec.Struct, frozen=True, kw_only=True):
    method: str
    route: str
    """The route's template, never the path."""
    status: int
    seconds: float


class PoolWaited(msgspec.Struct, frozen=True, kw_only=True):
    pool: str
    seconds: float


class LoopLagSeen(msgspec.Struct, frozen=True, kw_only=True):
    seconds: float


Observation = (
    MessagesAppended
    | HotRead
    | TurnEnded
    | ModelCalled
    | BreakerChanged
    | BatchFlushed
    | FlushFailed
    | DeadLettered
    | DeadLetterHandled
    | OwnerConflict
    | ShardsOwned
    | BacklogSeen
    | ComponentFailed
    | RequestServed
    | PoolWaited
    | LoopLagSeen
    | SummaryEnded
)

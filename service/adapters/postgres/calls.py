"""Records of calls that take effect once, in the transaction that has their effect."""

import secrets
from typing import Final, Literal, LiteralString

import msgspec

from service.adapters.postgres.door import Connection, PostgresDoor
from service.adapters.postgres.keys import session_key
from service.domain.errors import IdempotencyKeyReused
from service.domain.ids import MessageId, TurnId
from service.domain.sessions import SessionRef
from service.ports import Once

REPEAT_SECONDS: Final = 60
"""How long a call without a client's key is remembered, for the service's own repeats."""

SWEEP_ROWS_MAX: Final = 500
SWEEP_BATCHES_MAX: Final = 50
LEASE_REMAINS_SECONDS: Final = 3600
"""A lease that ended and was not taken is still its owner's: longer than any turn."""

WAIT_REMAINS_SECONDS: Final = 60
"""A place among those that wait counts for seconds only."""

OWN: Final = "op"
"""Operation of calls without a client's key: nobody else knows theirs."""

CallState = Literal["running", "done", "failed", "interrupted"]

# By the clock and not by the transaction's beginning: it may have waited for the session since.
FIND: Final[LiteralString] = """
SELECT fingerprint, state, token, ids, answer_id, result, turn_id
FROM calls
WHERE session_key = $1 AND tenant = $2 AND operation = $3 AND key = $4
  AND expires_at > clock_timestamp()
"""

# What is overwritten has expired or is a turn that begins again.
KEEP: Final[LiteralString] = """
INSERT INTO calls (session_key, tenant, operation, key, fingerprint, state, token, ids, expires_at,
                   result, turn_id, asked)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, clock_timestamp() + make_interval(secs => $9), $10, $11,
        $12)
ON CONFLICT (session_key, operation, key) DO UPDATE
SET fingerprint = EXCLUDED.fingerprint, state = EXCLUDED.state, token = EXCLUDED.token,
    ids = EXCLUDED.ids, answer_id = NULL, result = EXCLUDED.result,
    expires_at = EXCLUDED.expires_at, turn_id = EXCLUDED.turn_id, asked = EXCLUDED.asked
"""

# Over all tenants: nothing of a record is shown. What another process works on is left to it.
SWEEP_CALLS: Final[LiteralString] = """
WITH gone AS (
    DELETE FROM calls
    WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM calls WHERE expires_at <= now()
        ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))
    RETURNING 1
)
SELECT count(*) FROM gone
"""

SWEEP_LEASES: Final[LiteralString] = """
WITH gone AS (
    DELETE FROM turn_leases
    WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM turn_leases WHERE expires_at <= now() - make_interval(secs => $2)
        LIMIT $1 FOR UPDATE SKIP LOCKED))
    RETURNING 1
)
SELECT count(*) FROM gone
"""

SWEEP_WAITS: Final[LiteralString] = """
WITH gone AS (
    DELETE FROM turn_waits
    WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM turn_waits WHERE looked_at <= now() - make_interval(secs => $2)
        LIMIT $1 FOR UPDATE SKIP LOCKED))
    RETURNING 1
)
SELECT count(*) FROM gone
"""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """Names a call: by the client's key, or by one of our own where the client gave none."""

    ref: SessionRef
    operation: str
    key: str
    fingerprint: str
    lifetime_seconds: int


class CallRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a call that was committed left behind."""

    state: CallState
    token: str
    ids: tuple[MessageId, ...]
    answer_id: MessageId | None
    result: bytes
    turn_id: TurnId | None = None


def keyed_call(ref: SessionRef, once: Once, lifetime_seconds: int) -> Call:
    return Call(
        ref=ref,
        operation=once.operation,
        key=once.key,
        fingerprint=once.fingerprint,
        lifetime_seconds=lifetime_seconds,
    )


def own_call(
    ref: SessionRef,
    *,
    key: str | None = None,
    lifetime_seconds: int = REPEAT_SECONDS,
    fingerprint: str = "-",
) -> Call:
    """A call that only the service itself may repeat."""
    return Call(
        ref=ref,
        operation=OWN,
        key=key or secrets.token_hex(8),
        fingerprint=fingerprint,
        lifetime_seconds=lifetime_seconds,
    )


async def find_record(connection: Connection, call: Call) -> CallRecord | None:
    """Only under the session's lock: an earlier run of the call may still be committing.

    Raises IdempotencyKeyReused.
    """
    row = await connection.fetchrow(
        FIND, session_key(call.ref), call.ref.tenant, call.operation, call.key
    )
    if row is None:
        return None
    if call.operation != OWN and row["fingerprint"] != call.fingerprint:
        raise IdempotencyKeyReused
    answer = row["answer_id"]
    return CallRecord(
        state=row["state"],
        token=row["token"],
        ids=tuple(MessageId(str(identity)) for identity in row["ids"]),
        answer_id=None if answer is None else MessageId(str(answer)),
        result=row["result"],
        turn_id=row["turn_id"],
    )


async def keep_record(
    connection: Connection,
    call: Call,
    ids: tuple[MessageId, ...],
    *,
    state: CallState = "done",
    token: str = "",
    result: bytes = b"",
    turn_id: TurnId | None = None,
    asked: bytes = b"",
) -> None:
    await connection.execute(
        KEEP,
        session_key(call.ref),
        call.ref.tenant,
        call.operation,
        call.key,
        call.fingerprint,
        state,
        token,
        ids,
        call.lifetime_seconds,
        result,
        turn_id,
        asked,
    )


class PostgresSweeper:
    """Removes expired records and the leases of dead processes; one round for a Looper.

    Nothing depends on it but the size of the tables: what has expired counts as absent.
    """

    def __init__(self, door: PostgresDoor) -> None:
        self._door = door

    async def sweep(self) -> bool:
        """Batch by batch, each a short transaction of its own; whether there may be more.

        Raises ArchiveUnavailable.
        """
        for _ in range(SWEEP_BATCHES_MAX):
            async with self._door.connection() as connection:
                calls = await connection.fetchval(SWEEP_CALLS, SWEEP_ROWS_MAX)
                leases = await connection.fetchval(
                    SWEEP_LEASES, SWEEP_ROWS_MAX, LEASE_REMAINS_SECONDS
                )
                waits = await connection.fetchval(SWEEP_WAITS, SWEEP_ROWS_MAX, WAIT_REMAINS_SECONDS)
            if max(calls, leases, waits) < SWEEP_ROWS_MAX:
                return False
        return True

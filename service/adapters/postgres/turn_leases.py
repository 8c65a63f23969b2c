"""Leases on sessions: a row each, for one turn at a time."""

import math
from typing import Final, LiteralString

import msgspec

from service.adapters.postgres.calls import CallRecord
from service.adapters.postgres.door import Connection
from service.adapters.postgres.keys import session_key
from service.domain.errors import RequestRunning, SessionBusy
from service.domain.ids import TurnId
from service.domain.sessions import SessionRef
from service.ports import LeaseState

# The row is held, so that a renewal beside a take-over comes before it or finds the lease gone.
LEASE: Final[LiteralString] = """
SELECT token, extract(epoch FROM expires_at - clock_timestamp())::float8 AS seconds_left
FROM turn_leases
WHERE session_key = $1 AND tenant = $2
FOR UPDATE
"""

TAKE_LEASE: Final[LiteralString] = """
INSERT INTO turn_leases (session_key, tenant, token, turn_id, expires_at)
VALUES ($1, $2, $3, $4, clock_timestamp() + make_interval(secs => $5))
ON CONFLICT (session_key) DO UPDATE
SET token = EXCLUDED.token, turn_id = EXCLUDED.turn_id, expires_at = EXCLUDED.expires_at,
    cancelled = false
"""

RENEW_LEASE: Final[LiteralString] = """
UPDATE turn_leases
SET expires_at = clock_timestamp() + make_interval(secs => $4)
WHERE session_key = $1 AND tenant = $2 AND token = $3
RETURNING cancelled
"""

# An expired lease that nobody took is still its owner's: the token says so.
FREE_LEASE: Final[LiteralString] = """
DELETE FROM turn_leases
WHERE session_key = $1 AND tenant = $2 AND token = $3
RETURNING true
"""


class Lease(msgspec.Struct, frozen=True):
    token: str
    seconds_left: float


async def find_lease(connection: Connection, ref: SessionRef) -> Lease | None:
    row = await connection.fetchrow(LEASE, session_key(ref), ref.tenant)
    return None if row is None else Lease(row["token"], row["seconds_left"])


def check_lease(lease: Lease | None, record: CallRecord | None, token: str) -> None:
    """Raises RequestRunning or SessionBusy while another turn has the session."""
    if lease is None or lease.seconds_left <= 0 or lease.token == token:
        return
    if record is not None and record.token == lease.token:
        raise RequestRunning(turn_id=record.turn_id or "")
    raise SessionBusy(retry_after_seconds=max(1, math.ceil(lease.seconds_left)))


async def take_lease(
    connection: Connection, ref: SessionRef, token: str, turn_id: TurnId, seconds: float
) -> None:
    await connection.execute(TAKE_LEASE, session_key(ref), ref.tenant, token, turn_id, seconds)


async def renew_lease(
    connection: Connection, ref: SessionRef, token: str, seconds: float
) -> LeaseState:
    cancelled = await connection.fetchval(RENEW_LEASE, session_key(ref), ref.tenant, token, seconds)
    return "lost" if cancelled is None else "cancelled" if cancelled else "held"


async def free_lease(connection: Connection, ref: SessionRef, token: str) -> bool:
    """Whether it was ours."""
    return bool(await connection.fetchval(FREE_LEASE, session_key(ref), ref.tenant, token))

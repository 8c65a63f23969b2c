"""Who waits for a busy session, where PostgreSQL holds everything: first come, first served."""

from typing import Final, LiteralString

from service.adapters.postgres.door import Connection
from service.adapters.postgres.keys import session_key
from service.domain.sessions import SessionRef
from service.ports import WAIT_LOOK_MILLISECONDS, WAITERS_MAX, Begin

# In a transaction of its own, before the begin that is refused: its place must outlive that one.
WAIT: Final[LiteralString] = """
INSERT INTO turn_waits (session_key, tenant, token, looked_at)
SELECT $1::uuid, $2::text, $3::text, clock_timestamp()
WHERE (
    SELECT count(*) FROM turn_waits WHERE session_key = $1 AND tenant = $2 AND token <> $3
) < $4
ON CONFLICT (session_key, token) DO UPDATE SET looked_at = EXCLUDED.looked_at
"""

# Whoever does not look any more is not counted.
FIRST_WAITING: Final[LiteralString] = """
SELECT token
FROM turn_waits
WHERE session_key = $1 AND tenant = $2
  AND looked_at > clock_timestamp() - make_interval(secs => $3)
ORDER BY place
LIMIT 1
"""

WAIT_NO_MORE: Final[LiteralString] = """
DELETE FROM turn_waits WHERE session_key = $1 AND tenant = $2 AND token = $3
"""


async def wait_on(connection: Connection, command: Begin) -> None:
    """Take a place among those that wait, or keep it."""
    ref = command.ref
    await connection.execute(WAIT, session_key(ref), ref.tenant, command.lease_token, WAITERS_MAX)


async def others_come_first(connection: Connection, ref: SessionRef, token: str) -> bool:
    """Only under the session's lock."""
    first = await connection.fetchval(
        FIRST_WAITING, session_key(ref), ref.tenant, WAIT_LOOK_MILLISECONDS / 1000
    )
    return first not in {None, token}

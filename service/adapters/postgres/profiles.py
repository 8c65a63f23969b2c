"""Profiles in PostgreSQL."""

from typing import Final, LiteralString

from service.adapters.postgres.door import Connection, PostgresDoor
from service.domain.profiles import Profile, decode_topics, encode_topics

GET: Final[LiteralString] = """
SELECT version, document, updated_at
FROM profiles
WHERE tenant = $1 AND user_id = $2
"""

MAKE: Final[LiteralString] = """
INSERT INTO profiles (tenant, user_id, version, document, updated_at)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (tenant, user_id) DO NOTHING
RETURNING true
"""

REPLACE: Final[LiteralString] = """
UPDATE profiles
SET version = $3, document = $4, updated_at = $5
WHERE tenant = $1 AND user_id = $2 AND version = $6
RETURNING true
"""

REMOVE: Final[LiteralString] = """
DELETE FROM profiles
WHERE tenant = $1 AND user_id = $2 AND version = $3
RETURNING true
"""


class PostgresProfiles:
    """Profiles in PostgreSQL; a write whose reply was lost is repeated and known again."""

    def __init__(self, door: PostgresDoor) -> None:
        self._door = door

    async def get(self, tenant: str, user_id: str) -> Profile | None:
        async with self._door.connection() as connection:
            return await _find(connection, tenant, user_id)

    async def replace(
        self, tenant: str, user_id: str, old: str | None, new: Profile | None
    ) -> bool:
        return await self._door.settled(lambda it: _replace(it, tenant, user_id, old, new))


async def _find(connection: Connection, tenant: str, user_id: str) -> Profile | None:
    row = await connection.fetchrow(GET, tenant, user_id)
    if row is None:
        return None
    return Profile(
        version=str(row["version"]),
        topics=decode_topics(row["document"]),
        updated_at=row["updated_at"],
    )


async def _replace(
    connection: Connection, tenant: str, user_id: str, old: str | None, new: Profile | None
) -> bool:
    if new is None:
        if old is not None and await connection.fetchval(REMOVE, tenant, user_id, old):
            return True
    else:
        values = (tenant, user_id, new.version, encode_topics(new.topics), new.updated_at)
        done = (
            await connection.fetchval(MAKE, *values)
            if old is None
            else await connection.fetchval(REPLACE, *values, old)
        )
        if done:
            return True
    found = await _find(connection, tenant, user_id)
    return (found.version if found else None) == (new.version if new else None)

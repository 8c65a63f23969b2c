"""Everything that the stores hold, to be searched for what must not be there."""

from typing import Any

import asyncpg
from redis.asyncio import Redis


async def in_redis(redis: Redis) -> bytes:
    """All keys and values."""
    found: list[Any] = []
    async for key in redis.scan_iter("*"):
        found.append(key)
        match await redis.type(key):
            case b"string":
                found.append(await redis.get(key))
            case b"hash":
                found.append(await redis.hgetall(key))
            case b"list":
                found.append(await redis.lrange(key, 0, -1))
            case b"zset":
                found.append(await redis.zrange(key, 0, -1))
            case b"stream":
                found.append(await redis.xrange(key))
            case other:
                raise AssertionError(f"a key of type {other!r}")
    return repr(found).encode()


async def in_postgres(sql: asyncpg.Connection) -> bytes:
    """All rows of all tables, as text; bytes too."""
    tables = await sql.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    texts = []
    for (table,) in tables:
        texts += [row[0] for row in await sql.fetch(f'SELECT t::text FROM "{table}" AS t')]
    kept = await sql.fetch("SELECT result || asked FROM calls")
    return "\n".join(texts).encode() + b"".join(row[0] for row in kept)

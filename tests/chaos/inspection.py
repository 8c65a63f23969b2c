"""Looking at the stores past all links: while it goes on, and at the end."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
import httpx
import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.chaos.clients import rows_of
from tests.chaos.records import Exposed, Final, Row, StoredSession
from tests.chaos.stack import Stack
from tests.support.polling import eventually

WATCH_PAUSE_SECONDS = 0.25
PAGE = 1000

# Keys of sessions that have unflushed entries and a lifetime all the same.
EXPOSED = """
local found = {}
for _, head in ipairs(redis.call('KEYS', '*:head:*')) do
  if tonumber(redis.call('HGET', head, 'unflushed') or 0) > 0 then
    for _, kind in ipairs({ 'head', 'tail', 'pins' }) do
      local key = string.gsub(head, ':head:', ':' .. kind .. ':', 1)
      if redis.call('PTTL', key) >= 0 then found[#found + 1] = key end
    end
  end
end
return found
"""
UNFLUSHED = """
local found = {}
for _, head in ipairs(redis.call('KEYS', '*:head:*')) do
  local count = redis.call('HGET', head, 'unflushed') or '0'
  if count ~= '0' then
    found[#found + 1] = head
    found[#found + 1] = count
  end
end
return found
"""
ROWS = """
SELECT s.session_id, m.id, m.role, m.body->>'content' AS text
FROM messages m JOIN sessions s USING (session_key)
ORDER BY s.session_id, m.id
"""


class Watch:
    """Looks again and again for what must never be so."""

    def __init__(self, stack: Stack) -> None:
        self.exposed: list[Exposed] = []
        self.looks = 0
        self._stack = stack

    async def run(self) -> None:
        while True:
            try:
                async with _redis(self._stack.redis.url) as client:
                    keys: Any = await client.eval(EXPOSED, 0)
            except (RedisError, OSError, TimeoutError):
                keys = []
            else:
                self.looks += 1
            self.exposed += [Exposed(at=time.monotonic(), key=key.decode()) for key in keys]
            await asyncio.sleep(WATCH_PAUSE_SECONDS)


async def journal_entries(stack: Stack) -> int:
    async with _redis(stack.redis.url) as client:
        streams: Any = await client.keys("*:journal")
        return sum([await client.xlen(stream) for stream in streams])


async def until_archived(stack: Stack, within_seconds: float) -> bool:
    """Whether the flushers have emptied the journal by then."""

    async def empty() -> bool:
        return await journal_entries(stack) == 0

    try:
        await eventually(empty, within_seconds)
    except AssertionError:
        return False
    return True


async def final_state(stack: Stack, sessions: Sequence[str], apis: Mapping[str, str]) -> Final:
    """Of ``sessions``; read through each API at its own port."""
    entries = await journal_entries(stack)
    unflushed = await _unflushed(stack)
    connection = await asyncpg.connect(stack.postgres.url, timeout=10)
    try:
        archived: dict[str, list[Row]] = defaultdict(list)
        for row in await connection.fetch(ROWS):
            archived[row["session_id"]].append(Row(str(row["id"]), row["role"], row["text"]))
        stored = {
            row["session_id"]: row
            for row in await connection.fetch(
                "SELECT session_id, message_count, last_id FROM sessions"
            )
        }
        counted = await connection.fetchval("SELECT COALESCE(sum(messages), 0) FROM daily_counts")
    finally:
        await connection.close()
    readers = {name: await _read_all(url, sessions) for name, url in apis.items()}
    return Final(
        sessions={
            session: StoredSession(
                readers={name: read[session] for name, read in readers.items()},
                archive=tuple(archived[session]),
                message_count=stored[session]["message_count"],
                last_id=str(last) if (last := stored[session]["last_id"]) else None,
                unflushed=unflushed.get(session, 0),
            )
            for session in sessions
            if session in stored
        },
        journal_entries=entries,
        counted_messages=int(counted),
    )


async def _read_all(url: str, sessions: Sequence[str]) -> dict[str, tuple[Row, ...]]:
    gate = asyncio.Semaphore(8)
    async with httpx.AsyncClient(base_url=url, timeout=20) as http:

        async def read(session: str) -> tuple[Row, ...]:
            rows: tuple[Row, ...] = ()
            cursor = None
            while True:
                path = f"/v1/sessions/{session}/messages?limit={PAGE}"
                async with gate:
                    response = await http.get(path + (f"&after={cursor}" if cursor else ""))
                if response.status_code == 404:
                    return rows
                answer = msgspec.json.decode(response.raise_for_status().content)
                rows += rows_of(answer)
                cursor = answer["next_cursor"]
                if cursor is None:
                    return rows

        found = await asyncio.gather(*map(read, sessions))
    return dict(zip(sessions, found, strict=True))


async def _unflushed(stack: Stack) -> dict[str, int]:
    async with _redis(stack.redis.url) as client:
        found: Any = await client.eval(UNFLUSHED, 0)
    heads = [head.decode().rpartition(":")[2] for head in found[::2]]
    return dict(zip(heads, map(int, found[1::2]), strict=True))


def _redis(url: str) -> Redis:
    return Redis.from_url(url, protocol=2, socket_timeout=2, socket_connect_timeout=1)

"""One door to Redis: runs commands in bounded time, repeats lost calls, translates errors."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any, Final, TypeVar

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.domain.errors import ChatMemoryError, HotUnavailable

T = TypeVar("T")
Value = str | bytes | int | float

REPEAT_PAUSE_SECONDS: Final = 0.02
"""Between a lost reply and the repeated call."""


class HotLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Waits for Redis: all calls together, retries included, end within ``call_seconds``."""

    connections: int = 64
    call_seconds: float = 0.9
    connect_seconds: float = 0.5
    fsync_seconds: float = 3.0
    """Time for the append-only file to reach the disk: a second with ``everysec``, and more under
    load."""


class Script:
    """A Lua script from ``scripts/``, known by its digest."""

    def __init__(self, name: str, *, of_session: bool, lets_go: bool = False) -> None:
        folder = resources.files("service.adapters.redis") / "scripts"
        parts = [name]
        if of_session:
            parts = ["letting_go", "session", name]
        elif lets_go:
            parts = ["letting_go", name]
        self.text = "".join((folder / f"{part}.lua").read_text("utf-8") for part in parts)
        # Redis names scripts by SHA-1; nothing is secured by it.
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class RedisDoor:
    """Runs commands on one pool.

    Every call may have run although its reply was lost, and is then repeated: callers pass only
    commands that take effect once however often they run.
    """

    def __init__(self, url: str, limits: HotLimits) -> None:
        self._limits = limits
        # The client owns the pool and closes it.
        self._redis: Redis = Redis.from_pool(pool_of(url, limits, connections=limits.connections))
        # Replies as they come: the callers here know their shapes.
        self._redis.response_callbacks.clear()
        self._check: Callable[[], Awaitable[object]] | None = None

    def trust_after(self, check: Callable[[], Awaitable[object]]) -> None:
        """Let ``run`` and ``together`` wait until ``check`` passed once; it uses ``command``."""
        self._check = check

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Value]) -> Any:
        async def call() -> Any:
            try:
                return await self._command("EVALSHA", script.digest, len(keys), *keys, *arguments)
            except NoScriptError:
                return await self._command("EVAL", script.text, len(keys), *keys, *arguments)

        await self._trusted()
        return await self.bounded(call)

    async def run_fsynced(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Value], *, replicas: int
    ) -> Any:
        """As ``run``, then wait until what it wrote is on the disk of the server and of replicas.

        Both go down one connection: the server waits for what that one wrote. Raises HotUnavailable
        when the wait ends without it.
        """
        wait = ("WAITAOF", 1, replicas, round(self._limits.fsync_seconds * 1000))

        async def call() -> list[Any]:
            script_call = ("EVALSHA", script.digest, len(keys), *keys, *arguments)
            try:
                return await self._pipelined([script_call, wait])
            except NoScriptError:
                script_call = ("EVAL", script.text, len(keys), *keys, *arguments)
                return await self._pipelined([script_call, wait])

        await self._trusted()
        reply, (local, remote) = await self.bounded(call, extra_seconds=self._limits.fsync_seconds)
        if local < 1 or remote < replicas:
            raise HotUnavailable("The hot memory's disk did not keep up in time.")
        return reply

    async def command(self, *words: Value) -> Any:
        return await self.bounded(lambda: self._command(*words))

    async def together(self, commands: Sequence[Sequence[Value]]) -> list[Any]:
        """Commands in one round trip, not one step; the first error is raised."""
        if not commands:
            return []

        await self._trusted()
        return await self.bounded(lambda: self._pipelined(commands))

    async def _pipelined(self, commands: Sequence[Sequence[Value]]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for words in commands:
            pipeline.execute_command(*words)  # pyright: ignore[reportUnknownMemberType, reportUnusedCoroutine]  # a pipeline only collects here
        return await pipeline.execute()

    async def bounded(self, call: Callable[[], Awaitable[T]], *, extra_seconds: float = 0) -> T:
        """Raises HotUnavailable when Redis does not answer in time or refuses."""
        seconds = self._limits.call_seconds + extra_seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._until_answered(call, seconds)
        except (TimeoutError, RedisTimeoutError) as error:
            raise HotUnavailable("The hot memory did not answer in time.") from error
        except RedisError as error:
            raise HotUnavailable(_reason(error)) from error

    async def close(self) -> None:
        await self._redis.aclose()

    async def _trusted(self) -> None:
        if self._check is None:
            return
        try:
            await self._check()
        except ChatMemoryError as error:
            raise HotUnavailable(error.detail) from error
        self._check = None

    async def _until_answered(self, call: Callable[[], Awaitable[T]], seconds: float) -> T:
        # Its own look at the time: a cancellation that is swallowed below ends no loop.
        deadline = time.monotonic() + seconds
        while True:
            try:
                return await call()
            except (RedisConnectionError, RedisTimeoutError):
                if time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(REPEAT_PAUSE_SECONDS)

    async def _command(self, *words: Value) -> Any:
        return await self._redis.execute_command(*words)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # untyped


def pool_of(url: str, limits: HotLimits, *, connections: int) -> BlockingConnectionPool:
    """Connections without time-outs but that of their making: their users bound each call."""
    return BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]  # untyped options
        url,
        protocol=2,
        max_connections=connections,
        timeout=limits.call_seconds,
        # With a time-out of its own the library sends through asyncio.wait_for, which before
        # Python 3.12 may swallow a cancellation.
        socket_timeout=None,
        socket_connect_timeout=limits.connect_seconds,
        # The library's own retries would repeat within a MULTI; ours repeat whole calls.
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )


def _reason(error: RedisError) -> str:
    # Server errors may quote arguments; their first word is a code without data.
    code = str(error).split(" ", 1)[0]
    if code in {"OOM", "MISCONF", "READONLY", "LOADING", "CLUSTERDOWN", "NOREPLICAS", "NOAUTH"}:
        return f"The hot memory refuses writes ({code})."
    return f"The hot memory failed ({type(error).__name__})."

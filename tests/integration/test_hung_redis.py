"""A Redis that hangs, worse than one that is gone: it takes connections and says nothing."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator

import pytest

from service.dev.valkey import EmbeddedValkey
from service.domain.errors import HotUnavailable
from service.ports import Append, PageQuery
from service.settings import Settings
from tests.support.stores import Kept, kept, ref, said

CALLERS = 200


@pytest.fixture
async def valkey(tmp_path) -> AsyncGenerator[EmbeddedValkey]:
    server = EmbeddedValkey(tmp_path)
    await server.start()
    yield server
    os.kill(server.pid or 0, signal.SIGCONT)
    await server.stop()


@pytest.fixture
async def hybrid(valkey: EmbeddedValkey, database_url: str) -> AsyncGenerator[Kept]:
    async with kept(Settings(redis_url=valkey.url, database_url=database_url)) as store:
        yield store


async def append(hybrid: Kept, number: int) -> float:
    """Seconds that the call took to be refused."""
    started = time.monotonic()
    command = Append(ref=ref(f"s{number}"), bodies=(said("x"),))
    with pytest.raises(HotUnavailable):
        await hybrid.store.transcripts.append(command)
    return time.monotonic() - started


@pytest.mark.parametrize("warm", [False, True])
async def test_every_caller_is_refused_in_time(hybrid, valkey, warm):
    if warm:
        for number in range(CALLERS):
            command = Append(ref=ref(f"s{number}"), bodies=(said("w"),))
            await hybrid.store.transcripts.append(command)
    os.kill(valkey.pid, signal.SIGSTOP)
    for _ in range(3):
        calls = [asyncio.create_task(append(hybrid, number)) for number in range(CALLERS)]
        done, waiting = await asyncio.wait(calls, timeout=4)
        assert not waiting
        assert max(call.result() for call in done) < 2

    os.kill(valkey.pid, signal.SIGCONT)
    command = Append(ref=ref("after"), bodies=(said("y"),))
    assert len((await hybrid.store.transcripts.append(command)).ids) == 1
    messages = await hybrid.store.transcripts.page(ref("after"), PageQuery(limit=10))
    assert [message.content for message in messages] == ["y"]

"""The OpenAPI document is held to the service by schemathesis, on real stores and a real socket."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from service.api.server import Listener, ServiceServer
from service.bootstrap.ambient import SystemClock
from service.bootstrap.flushers import open_flusher
from tests.support.api import api_client
from tests.support.polling import eventually
from tests.support.scripted_model import ScriptedModel
from tests.support.stores import Recorder

EXAMPLES_PER_OPERATION = 25
SECONDS_MAX = 240
BODY_BYTES_MAX = 8 * 1024 * 1024
ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "tests" / "schemathesis.toml"


async def schemathesis(url: str) -> tuple[int, str]:
    words = [
        *("--config-file", str(CONFIGURATION), "run", f"{url}/openapi.json"),
        *("--max-examples", str(EXAMPLES_PER_OPERATION)),
        *("--workers", "1", "--generation-deterministic", "--no-color"),
        # Requests are made by requests: a lone surrogate never gets to a socket.
        *("--generation-codec", "utf-8", "--continue-on-failure"),
    ]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "schemathesis.cli",
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks"},
        cwd=ROOT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), SECONDS_MAX)
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode or 0, output.decode(errors="replace")


@pytest.mark.timeout(SECONDS_MAX + 30)
async def test_every_answer_to_any_request_is_one_that_the_document_describes(hybrid_settings):
    flushing = open_flusher(hybrid_settings, clock=SystemClock(), observer=Recorder())
    async with (
        api_client(ScriptedModel(), hybrid_settings, body_bytes_max=BODY_BYTES_MAX) as client,
        flushing as (flusher, _),
    ):
        await flusher.start()
        transport: Any = client.http._transport
        server = ServiceServer(
            [Listener(app=transport.app, host="127.0.0.1", port=0)],
            drain=client.readiness.drain,
            grace_seconds=5,
        )
        started = asyncio.Event()
        serving = asyncio.create_task(server.serve(started=started.set))
        await eventually(started.is_set, within_seconds=10)
        try:
            status, output = await schemathesis(f"http://127.0.0.1:{server.ports[0]}")
        finally:
            server.stop()
            await serving
            await flusher.stop()
    assert status == 0, output[-20_000:]

"""An API of its own over the stores that others use too, on a port of its own."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec

from service.api.server import Listener, ServiceServer
from service.ports import StreamingModel
from service.settings import Settings
from tests.support.api import Client, api_client
from tests.support.scripted_model import ScriptedModel


class Event(msgspec.Struct):
    id: str
    name: str
    data: dict[str, Any]


class Process(msgspec.Struct):
    """One process of the service, as its callers see it."""

    http: httpx.AsyncClient
    model: ScriptedModel
    client: Client
    server: ServiceServer

    async def events(self, path: str, **request: Any) -> AsyncGenerator[Event]:
        async with self.http.stream(request.pop("method", "POST"), path, **request) as response:
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["x-accel-buffering"] == "no"
            assert "no-cache" in response.headers["cache-control"]
            fields: dict[str, str] = {}
            async for line in response.aiter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif "event" in fields:
                    data = msgspec.json.decode(fields["data"])
                    yield Event(fields["id"], fields["event"], data)
                    fields = {}

    async def turn(self, turn_id: str) -> dict[str, Any]:
        response = await self.http.get(f"/v1/sessions/s/turns/{turn_id}")
        assert response.status_code == 200, response.text
        return response.json()

    def joined(self, turn_id: str, **headers: str) -> AsyncGenerator[Event]:
        path = f"/v1/sessions/s/turns/{turn_id}/events"
        return self.events(path, method="GET", headers=headers)

    async def messages(self) -> list[tuple[str, Any, Any]]:
        items = (await self.http.get("/v1/sessions/s/messages")).json()["items"]
        return [(item["role"], item["content"], item["status"]) for item in items]


@asynccontextmanager
async def process(
    settings: Settings, *, asks: StreamingModel | None = None, **options: Any
) -> AsyncGenerator[Process]:
    """Asks its scripted model, or the one that is given."""
    model = ScriptedModel()
    async with api_client(asks or model, settings, **options) as client:
        transport: Any = client.http._transport
        server = ServiceServer(
            [Listener(app=transport.app, host="127.0.0.1", port=0)],
            drain=client.readiness.drain,
            grace_seconds=1,
        )
        started = asyncio.Event()
        serving = asyncio.create_task(server.serve(started=started.set))
        await started.wait()
        url = f"http://127.0.0.1:{server.ports[0]}"
        try:
            async with httpx.AsyncClient(base_url=url, timeout=10) as http:
                yield Process(http, model, client, server)
        finally:
            server.stop()
            await asyncio.wait_for(serving, 10)

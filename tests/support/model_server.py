"""An OpenAI-style server over real HTTP that says what a test tells it to.

Scripts are written in the words of Chat Completions; asked at /responses it translates them.
"""

import asyncio
import json
import re
import time
from collections import deque
from collections.abc import Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
import uvicorn

from tests.support import responses_wire

Step = bytes | float | asyncio.Event | Literal["break"]
"""Of a streamed body: send these bytes, sleep so many seconds, wait, or break the connection."""


class Reply(msgspec.Struct, kw_only=True):
    """One scripted answer; the first field that applies decides."""

    text: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    finish_reason: str = "stop"
    usage: dict[str, Any] | None = None
    message: dict[str, Any] | None = None
    """The whole message, in place of ``text`` and ``tool_calls``."""
    status: int = 200
    headers: dict[str, str] = {}
    body: bytes | None = None
    """The raw body, in place of everything above."""
    steps: Sequence[Step] | None = None
    """The streamed body, in place of everything above."""
    until: asyncio.Event | None = None
    """The answer waits for it."""
    delay_seconds: float = 0
    drop: Literal["before_headers", "in_body"] | None = None
    """Where the connection breaks."""


class ModelServer:
    """Answers by its script, then echoes the last message; keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.callers: list[tuple[str, int]] = []
        """Address and port of each request: one connection has one."""
        self.hung_up: list[float] = []
        """Monotonic times at which callers left in the middle of a streamed body."""
        self.echo_seconds = 0.0
        """How long it thinks before it echoes."""
        self._script: deque[Reply] = deque()
        config = uvicorn.Config(
            self._app,
            host="127.0.0.1",
            port=0,
            interface="asgi3",
            log_config=None,
            lifespan="off",
            ws="none",
        )
        self._server = uvicorn.Server(config)
        self._serving: asyncio.Task[None] | None = None

    @property
    def base_url(self) -> str:
        [listener] = self._server.servers
        return f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"

    def script(self, *replies: Reply) -> None:
        self._script += replies

    async def __aenter__(self) -> Self:
        # Signals belong to the test run.
        self._serving = asyncio.create_task(self._server._serve())
        while not self._server.started:  # noqa: ASYNC110  # uvicorn tells by a flag.
            await asyncio.sleep(0.005)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        if self._serving is not None:
            await self._serving

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        request = json.loads(await _body(receive))
        self.requests.append(request)
        self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        self.callers.append(tuple(scope["client"]))
        reply = self._script.popleft() if self._script else _echo(request, self.echo_seconds)
        if reply.until is not None:
            await reply.until.wait()
        await asyncio.sleep(reply.delay_seconds)
        if reply.drop == "before_headers":
            return await self._hang_up(scope, receive)

        if reply.body is None and reply.status == HTTPStatus.OK and request.get("stream"):
            return await self._stream(scope, receive, send, reply, request)

        headers = {"content-type": "application/json"} | reply.headers
        await send(
            {
                "type": "http.response.start",
                "status": reply.status,
                "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
            }
        )
        body = reply.body if reply.body is not None else _completion(request, reply)
        if reply.drop == "in_body":
            half = body[: len(body) // 2]
            await send({"type": "http.response.body", "body": half, "more_body": True})
            return await self._hang_up(scope, receive)
        return await send({"type": "http.response.body", "body": body})

    async def _stream(
        self, scope: Any, receive: Any, send: Any, reply: Reply, request: dict[str, Any]
    ) -> None:
        headers = {"content-type": "text/event-stream"} | reply.headers
        await send(
            {
                "type": "http.response.start",
                "status": HTTPStatus.OK,
                "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
            }
        )
        steps = _chunks(request, reply) if reply.steps is None else reply.steps
        if "input" in request:
            steps = list(responses_wire.translated(steps))
        sending = asyncio.create_task(self._send_steps(scope, receive, send, steps))
        leaving = asyncio.create_task(_left(receive))
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            self.hung_up.append(time.monotonic())
        for task in (sending, leaving):
            task.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send_steps(self, scope: Any, receive: Any, send: Any, steps: Sequence[Step]) -> None:
        for step in steps:
            match step:
                case bytes():
                    await send({"type": "http.response.body", "body": step, "more_body": True})
                case asyncio.Event():
                    await step.wait()
                case "break":
                    return await self._hang_up(scope, receive)
                case _:
                    await asyncio.sleep(step)
        return await send({"type": "http.response.body", "body": b""})

    async def _hang_up(self, scope: Any, receive: Any) -> None:
        for connection in self._server.server_state.connections:
            if connection.transport.get_extra_info("peername") == tuple(scope["client"]):
                connection.transport.abort()
        # Until uvicorn knows, it would answer for us.
        while (await receive())["type"] != "http.disconnect":
            pass


async def _left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
    return body


def _echo(request: dict[str, Any], seconds: float) -> Reply:
    asked = request.get("messages") or request["input"]
    return Reply(text=f"echo: {asked[-1]['content']}", delay_seconds=seconds)


def data(document: Any) -> bytes:
    """One event."""
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


def chunk(finish_reason: str | None = None, model: str = "m", **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return data({"model": model, "choices": [choice], "usage": None})


DONE = b"data: [DONE]\n\n"


def _chunks(request: dict[str, Any], reply: Reply) -> list[Step]:
    """The reply as a server streams it, a word in each chunk."""
    model = request["model"]
    steps: list[Step] = [chunk(model=model, role="assistant", content="")]
    if reply.message is not None:
        steps.append(chunk(model=model, **reply.message))
    words = re.findall(r"\S*\s*", reply.text or "", re.DOTALL)
    steps += [chunk(model=model, content=word) for word in words if word]
    for index, call in enumerate(reply.tool_calls or []):
        steps.append(chunk(model=model, tool_calls=[call | {"index": index}]))
    steps.append(chunk(reply.finish_reason, model=model))
    usage = reply.usage or {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return [*steps, data({"model": model, "choices": [], "usage": usage}), DONE]


def _completion(request: dict[str, Any], reply: Reply) -> bytes:
    message = reply.message or {
        "role": "assistant",
        "content": reply.text,
        **({"tool_calls": reply.tool_calls} if reply.tool_calls else {}),
    }
    usage = reply.usage or {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    if "input" in request:
        return responses_wire.completion(request["model"], message, reply.finish_reason, usage)
    completion: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": request["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason}],
    }
    return msgspec.json.encode(completion | {"usage": usage})

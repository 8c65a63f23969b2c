"""Clients that append, chat, read, clear and repeat as real ones do, and write down every call."""

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import msgspec

from tests.chaos.records import Attempt, Call, Operation, Outcome, Row

ATTEMPTS_MAX = 8
SESSION_MESSAGES = 300
SHARED_SESSIONS = 3
# These say: not now, or not known whether.
REPEATED = {"session_busy", "request_running", "turn_state"}


class Request(msgspec.Struct, frozen=True, kw_only=True):
    operation: Operation
    session: str
    method: str
    path: str
    body: dict[str, Any] | None = None
    texts: tuple[str, ...] = ()
    keyed: bool = True
    durability: str = ""
    limit: int = 0
    after: str = ""
    archive_only: bool = False


class Client:
    """One caller with sessions of its own, who also speaks in sessions of all."""

    def __init__(
        self,
        name: str,
        seed: int,
        apis: Mapping[str, str],
        calls: list[Call],
        *,
        weights: Mapping[str, float],
        attempt_seconds: float,
    ) -> None:
        self._name = name
        self._chance = random.Random(seed)
        self._apis = apis
        self._calls = calls
        self._weights = weights
        self._attempt_seconds = attempt_seconds
        self._number = 0
        self._session_number = 0
        self._said_here = 0
        self._last_id = ""

    async def run(self, until: Callable[[], bool]) -> None:
        limits = httpx.Limits(max_connections=4, max_keepalive_connections=4)
        async with httpx.AsyncClient(timeout=self._attempt_seconds, limits=limits) as http:
            while not until():
                call = await self._made(http, self._next())
                self._calls.append(call)
                self._learn(call)
                await asyncio.sleep(self._chance.uniform(0, 0.05))

    def _next(self) -> Request:  # noqa: PLR0911  # A table of what there is to call.
        names, weights = list(self._weights), list(self._weights.values())
        chosen = self._chance.choices(names, weights)[0]
        session = f"{self._name}-{self._session_number}"
        if chosen.startswith("shared"):
            # Renewed as time goes: long sessions are slow to check.
            epoch = int(time.monotonic() / 20)
            session = f"shared-{self._chance.randrange(SHARED_SESSIONS)}-{epoch}"
        match chosen:
            case "append" | "archived":
                return self._append(session, 1, durability=chosen)
            case "unkeyed":
                return self._append(session, 1, keyed=False)
            case "shared":
                return self._append(session, 1 if self._chance.random() < 0.7 else 3)
            case "batch":
                return self._append(session, self._chance.randint(2, 30))
            case "chat" | "shared_chat":
                [text] = self._texts(1)
                path = f"/v1/sessions/{session}/chat"
                return Request(
                    operation="chat",
                    session=session,
                    method="POST",
                    path=path,
                    body={"message": text},
                    texts=(text,),
                )
            case "clear":
                path = f"/v1/sessions/{session}/messages"
                return Request(
                    operation="clear", session=session, method="DELETE", path=path, keyed=False
                )
            case _:
                return self._read(session)

    def _append(
        self, session: str, count: int, *, keyed: bool = True, durability: str = ""
    ) -> Request:
        texts = self._texts(count)
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text} for text in texts]}
        if durability == "archived":
            body["durability"] = durability
        return Request(
            operation="append",
            session=session,
            method="POST",
            path=f"/v1/sessions/{session}/messages",
            body=body,
            texts=texts,
            keyed=keyed,
            durability=durability,
        )

    def _read(self, session: str) -> Request:
        limit = self._chance.choice((5, 50, 400))
        if self._last_id and self._chance.random() < 0.3:
            path = f"/v1/sessions/{session}/messages?limit={limit}&after={self._last_id}"
            after = self._last_id
        else:
            path, after = f"/v1/sessions/{session}/messages?limit={limit}&order=desc", ""
            if self._chance.random() < 0.5:
                path = f"/history/{session}?limit={limit}"
        archive_only = self._chance.random() < 0.15
        if archive_only:
            path += "&consistency=archive"
        return Request(
            operation="read",
            session=session,
            method="GET",
            path=path,
            keyed=False,
            limit=limit,
            after=after,
            archive_only=archive_only,
        )

    def _texts(self, count: int) -> tuple[str, ...]:
        texts = tuple(f"{self._name} says {self._number + place}" for place in range(count))
        self._number += count
        return texts

    async def _made(self, http: httpx.AsyncClient, request: Request) -> Call:
        attempts: list[Attempt] = []
        key = str(uuid.UUID(int=self._chance.getrandbits(128), version=4))
        headers = {"Idempotency-Key": key} if request.keyed else {}
        outcome, body = "unknown", b""
        # Who has no key may not repeat what may have been written.
        repeatable = request.keyed or request.operation != "append"
        for number in range(ATTEMPTS_MAX if repeatable else 1):
            if number:
                await asyncio.sleep(self._chance.uniform(0.5, 1) * min(0.1 * 2**number, 1.5))
            attempt, body = await self._attempt(http, request, headers)
            attempts.append(attempt)
            outcome = _outcome(attempt)
            if outcome != "unknown":
                break
        return _call(self._name, request, attempts, outcome, body)

    async def _attempt(
        self, http: httpx.AsyncClient, request: Request, headers: Mapping[str, str]
    ) -> tuple[Attempt, bytes]:
        api = self._chance.choice(list(self._apis))
        start = time.monotonic()
        status, code, body = None, "", b""
        try:
            async with asyncio.timeout(self._attempt_seconds):
                response = await http.request(
                    request.method,
                    self._apis[api] + request.path,
                    json=request.body,
                    headers=dict(headers),
                )
            status, body = response.status_code, response.content
            if status >= 400:
                code = response.json().get("code", "")
        except (httpx.HTTPError, TimeoutError, ValueError) as error:
            status, code = None, type(error).__name__
        return Attempt(api=api, start=start, end=time.monotonic(), status=status, code=code), body

    def _learn(self, call: Call) -> None:
        if call.session.startswith("shared-"):
            return
        if call.operation in {"append", "chat"} and call.ids:
            self._last_id = call.ids[-1]
        self._said_here += len(call.texts)
        unclear = call.operation == "clear" and len(call.attempts) > 1
        if unclear or self._said_here > SESSION_MESSAGES:
            # A clear that may still be on its way could take anything said from now on.
            self._session_number += 1
            self._said_here, self._last_id = 0, ""


def _outcome(attempt: Attempt) -> Outcome:
    if attempt.status is None or attempt.status >= 500 or attempt.code in REPEATED:
        return "unknown"
    return "acked" if attempt.status < 400 else "refused"


def _call(
    client: str, request: Request, attempts: Sequence[Attempt], outcome: Outcome, body: bytes
) -> Call:
    ids: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    shown = -1
    if outcome == "acked" and body:
        answer = msgspec.json.decode(body)
        match request.operation:
            case "append":
                ids = tuple(message["id"] for message in answer["messages"])
            case "chat":
                said, shown = answer["message"], (answer["context"] or {"messages": -1})["messages"]
                ids = (answer["user_message_id"], *([said["id"]] if said else []))
            case _:
                rows = rows_of(answer)
                if "order=desc" in request.path:
                    rows = rows[::-1]
    return Call(
        client=client,
        operation=request.operation,
        session=request.session,
        start=attempts[0].start,
        end=attempts[-1].end,
        outcome=outcome,
        attempts=tuple(attempts),
        keyed=request.keyed,
        durability=request.durability,
        texts=request.texts,
        ids=ids,
        limit=request.limit,
        after=request.after,
        rows=rows,
        shown=shown,
        archive_only=request.archive_only,
    )


def rows_of(answer: dict[str, Any]) -> tuple[Row, ...]:
    items = answer["items"] if "items" in answer else answer["messages"]
    return tuple(Row(item["id"], item["role"], item["content"]) for item in items)

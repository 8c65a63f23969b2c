"""Beginning: what a turn's first step is told, and waiting for its place."""

import asyncio
import uuid
from typing import Final

import msgspec

from service.core.chat_request import ChatRequest
from service.core.counting import Counting
from service.core.prompting import Given, Prompting
from service.domain.errors import RequestRunning, SessionBusy
from service.domain.ids import TurnId
from service.domain.messages import MessageBody, encode_body
from service.ports import Begin, Begun, Clock, Replayed, Turns

JOIN_PAUSE_SECONDS_MIN: Final = 0.02
JOIN_PAUSE_SECONDS_MAX: Final = 0.5
"""Between two looks at a running turn that a caller has joined."""
WAIT_PAUSE_SECONDS: Final = 0.1
"""Between two looks at a session that is waited for."""


class Beginning:
    """Begins turns, one at a time per session."""

    def __init__(
        self,
        turns: Turns,
        prompting: Prompting,
        counting: Counting,
        clock: Clock,
        *,
        wait_seconds: float,
        join_seconds: float,
    ) -> None:
        self._turns = turns
        self._prompting = prompting
        self._counting = counting
        self._clock = clock
        self._wait_seconds = wait_seconds
        self._join_seconds = join_seconds

    async def begun_or_joined(self, command: Begin) -> Begun | Replayed:
        """Beside a running call with the same key, wait for its end and take its result.

        Where that one failed or died, this one takes the turn up again.
        """
        pause = JOIN_PAUSE_SECONDS_MIN
        deadline = self._clock.monotonic() + self._join_seconds
        while True:
            try:
                return await self.begun(command)
            except RequestRunning:
                if self._clock.monotonic() + pause > deadline:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, JOIN_PAUSE_SECONDS_MAX)

    async def begun(self, command: Begin) -> Begun | Replayed:
        """Wait for a busy session where so wanted. Raises SessionBusy past the bound."""
        deadline = self._clock.monotonic() + self._wait_seconds
        while True:
            try:
                return await self._turns.begin(command)
            except SessionBusy:
                if not command.waits or self._clock.monotonic() + WAIT_PAUSE_SECONDS > deadline:
                    raise
            await asyncio.sleep(WAIT_PAUSE_SECONDS)

    async def command(self, request: ChatRequest, lease_token: str, *, model: str) -> Begin:
        goes_on, body = request.goes_on, b""
        turn_id = goes_on.turn_id if goes_on else TurnId(str(uuid.uuid4()))
        if goes_on is None:
            said = MessageBody(role="user", content=request.message, turn_id=turn_id)
            body = encode_body(await self._counting.counted(said))
        given = given_by(request)
        return Begin(
            ref=request.ref,
            turn_id=turn_id,
            body=body,
            resumes=goes_on.resumption if goes_on else None,
            options=request.options,
            cost=await self._prompting.cost(given, model),
            user_id=request.user_id,
            once=request.once,
            lease_token=lease_token,
            durability=request.durability,
            waits=request.on_busy == "wait",
        )


def given_by(request: ChatRequest, profile: str | None = None) -> Given:
    """What its prompt has beside the session."""
    told = [value for value in (request.tools, request.response_format) if value is not None]
    return Given(
        instructions=request.instructions,
        profile=profile,
        message=request.message,
        said=request.said,
        tools=msgspec.json.encode(told).decode() if told else None,
    )

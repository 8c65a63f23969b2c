"""A chat turn: take the session and store the user's message, ask the model, store the answer.

Between those two steps nothing is held but the session's lease, which is renewed.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import msgspec

from service.core.beginning import (
    JOIN_PAUSE_SECONDS_MAX,
    JOIN_PAUSE_SECONDS_MIN,
    Beginning,
    given_by,
)
from service.core.chat_request import ChatRequest, check_request
from service.core.counting import Counting
from service.core.ending import Ending
from service.core.generating import Generating, Generation
from service.core.generations import Generations
from service.core.prompting import Offer, ProfileText, Prompting, wire_messages
from service.core.recording import check_session
from service.core.running_turn import RunningTurn, halved, recorded_turn, replayed_turn
from service.core.streamed import Streamed
from service.domain.context import plan
from service.domain.deltas import Place, Told, rest_of, told_after
from service.domain.errors import RequestRunning, TurnNotFound, TurnNotWaiting
from service.domain.ids import TurnId, check_id
from service.domain.sessions import SessionRef
from service.domain.turns import Prompt, Turn
from service.ports import (
    Clock,
    Observer,
    Pieces,
    Replayed,
    StreamingModel,
    Turns,
)

FOLLOW_SECONDS: Final = 0.1
"""Between two looks at a turn that runs in another process."""
CANCEL_WAIT_SECONDS: Final = 2.0
"""Longest wait of who cancels a turn for its end."""


class ChatSettings(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    message_bytes_max: int
    deadline_seconds: float
    lease_seconds: float
    wait_seconds: float = 30.0
    """Longest wait for a busy session."""
    ends_when_left: bool = False
    """Whether a streamed turn is cancelled when its caller leaves."""


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    turn: Turn
    replayed: bool


class Chat:
    """Turns of this process, and a look at those of all."""

    def __init__(
        self,
        turns: Turns,
        model: StreamingModel,
        prompting: Prompting,
        counting: Counting,
        settings: ChatSettings,
        *,
        profile_text: ProfileText,
        offer_summary: Offer,
        clock: Clock,
        observer: Observer,
        pieces: Pieces | None = None,
    ) -> None:
        self._turns = turns
        self._pieces = pieces
        self._prompting = prompting
        self._beginning = Beginning(
            turns,
            prompting,
            counting,
            clock,
            wait_seconds=settings.wait_seconds,
            join_seconds=settings.deadline_seconds,
        )
        self._settings = settings
        self._profile_text = profile_text
        self._clock = clock
        self._generations = Generations(
            Generating(
                turns=turns,
                model=model,
                ending=Ending(
                    turns, counting, offer_summary=offer_summary, clock=clock, observer=observer
                ),
                ask=self._prompt,
                clock=clock,
                pieces=pieces,
                deadline_seconds=settings.deadline_seconds,
                lease_seconds=settings.lease_seconds,
            )
        )

    async def stop(self, *, within_seconds: float = 0) -> None:
        """Let turns that run come to their end within the time; the rest is interrupted."""
        await self._generations.stop(within_seconds=within_seconds)

    async def answer(self, request: ChatRequest) -> Answered:
        """Run one turn to its end, or return the one that the same key ran before.

        The turn goes on where its caller is cancelled. A call whose key is running joins it. Raises
        the errors of Turns.begin and of Model.answer; after one of the latter the user's message
        stays, and the same key runs the turn again. ContextTooLarge where the message does not fit
        the budget: then it is not stored; where the session's system and developer messages leave
        no room for it, it is.
        """
        started = self._clock.monotonic()
        begun = await self._generation(request, started, streams=False)
        if isinstance(begun, Replayed):
            return Answered(turn=replayed_turn(begun), replayed=True)
        return Answered(turn=await begun.turn(), replayed=False)

    async def stream(self, request: ChatRequest) -> Streamed:
        """As ``answer``, told piece by piece; what keeps a turn from its begin is raised at once.

        A repeated call gets the whole answer, or joins the turn where it is.
        """
        started = self._clock.monotonic()
        try:
            begun = await self._generation(request, started, streams=True, joins=False)
        except RequestRunning as running:
            return await self.events(request.ref, TurnId(running.turn_id))
        if isinstance(begun, Replayed):
            return Streamed.of_ended(replayed_turn(begun), Place(), replayed=True)
        return Streamed(turn=begun.begun_turn(), events=self._followed(begun, Place()))

    async def events(
        self, ref: SessionRef, turn_id: TurnId, after: Place | None = None
    ) -> Streamed:
        """Join a turn from a place on, in whichever process it runs. Raises TurnNotFound."""
        place = after or Place()
        turn = await self._found(ref, turn_id, cancel=False)
        if turn.state != "running":
            return Streamed.of_ended(turn, place)
        if (here := self._generations.of(turn_id)) is not None:
            return Streamed(turn=here.begun_turn(), events=self._followed(here, place))
        return Streamed(turn=turn, events=self._followed_elsewhere(ref, turn, place))

    def left(self, turn: Turn) -> None:
        """The caller of a streamed turn has gone before its end."""
        here = self._generations.of(turn.turn_id)
        if self._settings.ends_when_left and here and here.running.attempt == turn.attempt:
            here.leave()

    async def _followed(self, generation: Generation, place: Place) -> AsyncGenerator[Told | Turn]:
        async with aclosing(generation.follow(place)) as pieces:
            async for told in pieces:
                place = told.place
                yield told
        turn = generation.told_end()
        for told in rest_of(turn, place):
            yield told
        yield turn

    async def _followed_elsewhere(
        self, ref: SessionRef, turn: Turn, place: Place
    ) -> AsyncGenerator[Told | Turn]:
        mark, whole = "", True
        while turn.state == "running":
            for piece in await self._pieces.read(ref, turn.turn_id, mark) if self._pieces else ():
                mark = piece.mark
                if piece.start.attempt != place.attempt:
                    place, whole = place.of(piece.start.attempt), True
                # Behind a gap nothing is told until the end: the result has it all.
                whole = whole and piece.start.is_reached_by(place)
                for told in told_after(place, piece.start, [piece.delta]) if whole else ():
                    place = told.place
                    yield told
            await asyncio.sleep(FOLLOW_SECONDS)
            # Looked at after its pieces, and its end told by the result: so nothing is missed.
            turn = await self._found_or_gone(ref, turn)
        for told in rest_of(turn, place):
            yield told
        yield turn

    async def _found_or_gone(self, ref: SessionRef, turn: Turn) -> Turn:
        """A turn whose session is deleted while it is followed was cancelled."""
        try:
            return await self._found(ref, turn.turn_id, cancel=False)
        except TurnNotFound:
            return msgspec.structs.replace(turn, state="cancelled")

    async def turn(self, ref: SessionRef, turn_id: TurnId) -> Turn:
        """How a turn stands. Raises TurnNotFound."""
        return await self._found(ref, turn_id, cancel=False)

    async def cancel(self, ref: SessionRef, turn_id: TurnId) -> Turn:
        """Ask a turn to end, wherever it runs, and tell how it stands then. Raises TurnNotFound."""
        turn = await self._found(ref, turn_id, cancel=True)
        if (here := self._generations.of(turn_id)) is not None:
            here.cancel()
        deadline = self._clock.monotonic() + CANCEL_WAIT_SECONDS
        pause = JOIN_PAUSE_SECONDS_MIN
        while turn.state == "running" and self._clock.monotonic() + pause < deadline:
            await asyncio.sleep(pause)
            pause = min(2 * pause, JOIN_PAUSE_SECONDS_MAX)
            turn = await self._found(ref, turn_id, cancel=True)
        return turn

    async def _found(self, ref: SessionRef, turn_id: TurnId, *, cancel: bool) -> Turn:
        check_session(ref)
        check_id(turn_id, "turn_id")
        record = await self._turns.find(ref, turn_id, cancel=cancel)
        if record is None:
            raise TurnNotFound
        return recorded_turn(ref.session_id, turn_id, record)

    async def _generation(
        self, request: ChatRequest, started: float, *, streams: bool, joins: bool = True
    ) -> Generation | Replayed:
        if request.goes_on is None:
            check_request(request, message_bytes_max=self._settings.message_bytes_max)
        self._generations.check_open()
        lease_token = secrets.token_hex(16)
        beginning, stops_heard = self._beginning, self._turns.stops.changes
        command = await beginning.command(request, lease_token, model=self._model_of(request))
        try:
            begun = await (beginning.begun_or_joined if joins else beginning.begun)(command)
        except TurnNotWaiting as error:
            # The store knows no such call from before: then its results are looked at.
            raise (request.goes_on and request.goes_on.unfit) or error from None
        if isinstance(begun, Replayed):
            return begun
        chosen = plan(request.options.over(begun.history.document.context))
        running = RunningTurn(
            request, lease_token, begun, chosen, started=started, stops_heard=stops_heard
        )
        return self._generations.start(running, streams=streams)

    def _model_of(self, request: ChatRequest) -> str:
        return request.model or self._settings.model

    async def _prompt(self, running: RunningTurn, *, shrinks: bool) -> Prompt:
        request, history = running.request, running.begun.history
        chosen = halved(running) if shrinks else running.chosen
        user_id = history.user_id or request.user_id
        profile = None
        if running.chosen.profile and user_id is not None:
            profile = await self._profile_text(request.ref.tenant, user_id)
        given = given_by(request, profile)
        model = self._model_of(request)
        shown = await self._prompting.shown(chosen, history, given, model)
        running.show(shown)
        return Prompt(
            messages=tuple(wire_messages(shown, given)),
            model=model,
            temperature=request.temperature,
            max_output_tokens=request.max_output_tokens,
            tools=request.tools,
            tool_choice=request.tool_choice,
            response_format=request.response_format,
        )

"""A chat turn: take the session and store the user's message, ask the model, store the answer.

Between those two steps nothing is held but the session's lease, which is renewed.
"""

import asyncio
import secrets
import uuid
from typing import Final

import msgspec

from service.core.background import ended, owned_task
from service.core.chat_request import ChatRequest, check_request
from service.core.counting import Counting
from service.core.prompting import Given, Offer, ProfileText, Prompting, Shown, wire_messages
from service.core.running_turn import RunningTurn, replayed_turn, with_answer_id
from service.domain.context import ContextOptions, plan
from service.domain.errors import ChatMemoryError, RequestRunning, TurnLost
from service.domain.ids import TurnId
from service.domain.messages import MessageBody, TurnCost, encode_body
from service.domain.observations import TurnEnded
from service.domain.turns import Answer, Prompt, Turn, TurnState
from service.ports import Begin, Begun, Clock, Model, Observer, Replayed, Turns

RENEWALS_PER_LEASE: Final = 3
JOIN_PAUSE_SECONDS_MIN: Final = 0.02
JOIN_PAUSE_SECONDS_MAX: Final = 0.5
"""Between two looks at a running turn that a caller has joined."""


class ChatSettings(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    message_bytes_max: int
    deadline_seconds: float
    lease_seconds: float


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    turn: Turn
    replayed: bool


class _Said(msgspec.Struct, frozen=True, kw_only=True):
    """The model's answer, what it was shown, and how long it took."""

    answer: Answer
    shown: Shown
    seconds: float


class Chat:
    """Turns without streaming."""

    def __init__(
        self,
        turns: Turns,
        model: Model,
        prompting: Prompting,
        counting: Counting,
        settings: ChatSettings,
        *,
        profile_text: ProfileText,
        offer_summary: Offer,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._turns = turns
        self._model = model
        self._prompting = prompting
        self._counting = counting
        self._settings = settings
        self._profile_text = profile_text
        self._offer_summary = offer_summary
        self._clock = clock
        self._observer = observer

    async def answer(self, request: ChatRequest) -> Answered:
        """Run one turn to its end, or return the one that the same key ran before.

        A call whose key is running joins it. Raises the errors of Turns.begin and of Model.answer;
        after one of the latter the user's message stays, and the same key runs the turn again.
        ContextTooLarge where the message does not fit the budget: then it is not stored; where the
        session's system and developer messages leave no room for it, it is.
        """
        check_request(request, message_bytes_max=self._settings.message_bytes_max)
        started = self._clock.monotonic()
        turn_id = TurnId(str(uuid.uuid4()))
        lease_token = secrets.token_hex(16)
        begun = await self._begun_or_joined(await self._begin(request, turn_id, lease_token))
        if isinstance(begun, Replayed):
            return Answered(turn=replayed_turn(begun), replayed=True)

        chosen = plan(request.options.over(begun.history.document.context))
        running = RunningTurn(request, turn_id, lease_token, begun, chosen)
        said = await self._ask(running)
        turn = await self._finish(running, said)
        if said.shown.wants_summary:
            own = plan(begun.history.document.context or ContextOptions())
            wanted = own if own.strategy == "summary" else chosen
            self._offer_summary(request.ref, wanted, said.shown.beside)
        overhead = self._clock.monotonic() - started - said.seconds
        self._observer.observe(TurnEnded(outcome=turn.state, overhead_seconds=overhead))
        return Answered(turn=turn, replayed=False)

    async def _begun_or_joined(self, command: Begin) -> Begun | Replayed:
        """Beside a running call with the same key, wait for its end and take its result.

        Where that one failed or died, this one takes the turn up again.
        """
        pause = JOIN_PAUSE_SECONDS_MIN
        deadline = self._clock.monotonic() + self._settings.deadline_seconds
        while True:
            try:
                return await self._turns.begin(command)
            except RequestRunning:
                if self._clock.monotonic() + pause > deadline:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, JOIN_PAUSE_SECONDS_MAX)

    async def _begin(self, request: ChatRequest, turn_id: TurnId, lease_token: str) -> Begin:
        given = Given(instructions=request.instructions, message=request.message)
        said = MessageBody(role="user", content=request.message, turn_id=turn_id)
        return Begin(
            ref=request.ref,
            turn_id=turn_id,
            body=encode_body(await self._counting.counted(said)),
            options=request.options,
            cost=await self._prompting.cost(given, self._model_of(request)),
            user_id=request.user_id,
            once=request.once,
            lease_token=lease_token,
            durability=request.durability,
        )

    def _model_of(self, request: ChatRequest) -> str:
        return request.model or self._settings.model

    async def _ask(self, running: RunningTurn) -> _Said:
        renewing = owned_task(self._keep_lease(running), name="turn-lease")
        try:
            shown, prompt = await self._prompt(running)
            asked = self._clock.monotonic()
            answer = await self._model.answer(
                prompt, deadline_seconds=self._settings.deadline_seconds
            )
            return _Said(answer=answer, shown=shown, seconds=self._clock.monotonic() - asked)
        except BaseException as error:
            await asyncio.shield(self._fail(running, error))
            raise
        finally:
            await ended(renewing)

    async def _prompt(self, running: RunningTurn) -> tuple[Shown, Prompt]:
        request, history = running.request, running.begun.history
        user_id = history.user_id or request.user_id
        profile = None
        if running.chosen.profile and user_id is not None:
            profile = await self._profile_text(request.ref.tenant, user_id)
        given = Given(instructions=request.instructions, profile=profile, message=request.message)
        model = self._model_of(request)
        shown = await self._prompting.shown(running.chosen, history, given, model)
        prompt = Prompt(
            messages=tuple(wire_messages(shown, given)),
            model=model,
            temperature=request.temperature,
            max_output_tokens=request.max_output_tokens,
        )
        return shown, prompt

    async def _keep_lease(self, running: RunningTurn) -> None:
        """Renew until cancelled; a failed renewal is tried again, a lost lease shows at finish."""
        while True:
            await asyncio.sleep(self._settings.lease_seconds / RENEWALS_PER_LEASE)
            try:
                if await self._turns.renew(running.request.ref, running.lease_token) == "lost":
                    return
            except ChatMemoryError:
                continue

    async def _fail(self, running: RunningTurn, error: BaseException) -> None:
        outcome = "failed" if isinstance(error, ChatMemoryError) else "interrupted"
        self._observer.observe(TurnEnded(outcome=outcome, overhead_seconds=None))
        try:
            await self._turns.fail(running.finish(body=None, result=b""))
        except ChatMemoryError:
            # The lease ends by itself, and the caller learns of the first trouble.
            return

    async def _finish(self, running: RunningTurn, said: _Said) -> Turn:
        answer = said.answer
        state: TurnState = "completed" if answer.complete else "incomplete"
        body = await self._counting.counted(
            MessageBody(
                role="assistant",
                content=answer.content,
                tool_calls=answer.tool_calls,
                turn_id=running.turn_id,
                status=None if answer.complete else "incomplete",
                cost=TurnCost(
                    model=answer.model,
                    input_tokens=answer.usage.input_tokens,
                    output_tokens=answer.usage.output_tokens,
                ),
            )
        )
        finished_milliseconds = self._clock.milliseconds()
        turn = running.turn(
            state, answer, body, said.shown, finished_milliseconds=finished_milliseconds
        )
        finish = running.finish(body=encode_body(body), result=msgspec.json.encode(turn))
        finished = await asyncio.shield(self._turns.finish(finish))
        match finished.outcome:
            case "stored":
                return with_answer_id(turn, finished.message_id)
            case "cancelled":
                return msgspec.structs.replace(turn, state="cancelled", message=None)
            case "lost":
                raise TurnLost

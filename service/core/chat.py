"""A chat turn: take the session and store the user's message, ask the model, store the answer.

Between those two steps nothing is held but the session's lease, which is renewed.
"""

import asyncio
import secrets
import uuid
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from service.core.background import ended, owned_task
from service.core.recording import check_session
from service.domain.context import ContextOptions, Plan, check_options, plan, window
from service.domain.errors import ChatMemoryError, InvalidValue, TurnLost
from service.domain.ids import ZERO_ID, MessageId, TurnId, check_id, id_time, time_of
from service.domain.messages import Message, MessageBody, check_text, encode_body
from service.domain.observations import TurnEnded
from service.domain.sessions import SessionRef
from service.domain.turns import Answer, Prompt, Turn, TurnContext, TurnState
from service.ports import (
    Begin,
    Begun,
    Clock,
    Finish,
    Model,
    Observer,
    Once,
    Replayed,
    Turns,
    Wanted,
)

TEMPERATURE_MAX: Final = 2.0
OUTPUT_TOKENS_MAX: Final = 1_000_000
RENEWALS_PER_LEASE: Final = 3


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller says, and how it wants to be answered."""

    ref: SessionRef
    message: str
    user_id: str | None = None
    model: str | None = None
    instructions: str | None = None
    temperature: float | None = None
    max_output_tokens: int | None = None
    context: ContextOptions | None = None
    once: Once | None = None
    durability: Wanted = "journaled"
    """What the answer is waited to reach."""


class ChatSettings(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    message_bytes_max: int
    deadline_seconds: float
    lease_seconds: float


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    turn: Turn
    replayed: bool


class Chat:
    """Turns without streaming."""

    def __init__(
        self,
        turns: Turns,
        model: Model,
        settings: ChatSettings,
        *,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._turns = turns
        self._model = model
        self._settings = settings
        self._clock = clock
        self._observer = observer

    async def answer(self, request: ChatRequest) -> Answered:
        """Run one turn to its end, or return the one that the same key ran before.

        Raises the errors of Turns.begin and of Model.answer; after one of the latter the user's
        message stays, and the same key runs the turn again.
        """
        self._check(request)
        started = self._clock.monotonic()
        turn_id = TurnId(str(uuid.uuid4()))
        lease_token = secrets.token_hex(16)
        begun = await self._turns.begin(self._begin(request, turn_id, lease_token))
        if isinstance(begun, Replayed):
            return Answered(turn=_replayed(begun), replayed=True)

        chosen = plan((request.context or ContextOptions()).over(begun.history.document.context))
        shown = window(chosen, begun.history.pinned, begun.history.messages)
        running = _Running(request, turn_id, lease_token, begun, chosen, len(shown))
        asked = self._clock.monotonic()
        answer = await self._ask(running, self._prompt(request, shown))
        model_seconds = self._clock.monotonic() - asked

        turn = await self._finish(running, answer)
        overhead = self._clock.monotonic() - started - model_seconds
        self._observer.observe(TurnEnded(outcome=turn.state, overhead_seconds=overhead))
        return Answered(turn=turn, replayed=False)

    def _check(self, request: ChatRequest) -> None:
        check_session(request.ref)
        if request.user_id is not None:
            check_id(request.user_id, "user_id")
        if request.model is not None:
            check_id(request.model, "model")
        bytes_max = self._settings.message_bytes_max
        check_text(request.message, "message", bytes_max=bytes_max)
        if request.instructions is not None:
            check_text(request.instructions, "instructions", bytes_max=bytes_max)
        check_options(request.context, "context")
        _check_sampling(request)

    def _begin(self, request: ChatRequest, turn_id: TurnId, lease_token: str) -> Begin:
        options = request.context or ContextOptions()
        return Begin(
            ref=request.ref,
            turn_id=turn_id,
            body=encode_body(MessageBody(role="user", content=request.message, turn_id=turn_id)),
            last=plan(options).last,
            session_last=options.strategy != "buffer" and options.last is None,
            user_id=request.user_id,
            once=request.once,
            lease_token=lease_token,
            durability=request.durability,
        )

    def _prompt(self, request: ChatRequest, shown: Sequence[Message]) -> Prompt:
        messages = [_wire(message) for message in shown]
        if request.instructions is not None:
            messages.insert(0, {"role": "system", "content": request.instructions})
        messages.append({"role": "user", "content": request.message})
        return Prompt(
            messages=tuple(messages),
            model=request.model or self._settings.model,
            temperature=request.temperature,
            max_output_tokens=request.max_output_tokens,
        )

    async def _ask(self, running: "_Running", prompt: Prompt) -> Answer:
        renewing = owned_task(self._keep_lease(running), name="turn-lease")
        try:
            return await self._model.answer(
                prompt, deadline_seconds=self._settings.deadline_seconds
            )
        except BaseException as error:
            await asyncio.shield(self._fail(running, error))
            raise
        finally:
            await ended(renewing)

    async def _keep_lease(self, running: "_Running") -> None:
        """Renew until cancelled; a failed renewal is tried again, a lost lease shows at finish."""
        while True:
            await asyncio.sleep(self._settings.lease_seconds / RENEWALS_PER_LEASE)
            try:
                if not await self._turns.renew(running.request.ref, running.lease_token):
                    return
            except ChatMemoryError:
                continue

    async def _fail(self, running: "_Running", error: BaseException) -> None:
        outcome = "failed" if isinstance(error, ChatMemoryError) else "interrupted"
        self._observer.observe(TurnEnded(outcome=outcome, overhead_seconds=None))
        try:
            await self._turns.fail(running.finish(body=None, result=b""))
        except ChatMemoryError:
            # The lease ends by itself, and the caller learns of the first trouble.
            return

    async def _finish(self, running: "_Running", answer: Answer) -> Turn:
        state: TurnState = "completed" if answer.complete else "incomplete"
        body = MessageBody(
            role="assistant",
            content=answer.content,
            tool_calls=answer.tool_calls,
            turn_id=running.turn_id,
            status=None if answer.complete else "incomplete",
            token_count=answer.usage.output_tokens or None,
        )
        turn = running.turn(state, answer, body, finished_milliseconds=self._clock.milliseconds())
        finish = running.finish(body=encode_body(body), result=msgspec.json.encode(turn))
        finished = await asyncio.shield(self._turns.finish(finish))
        match finished.outcome:
            case "stored":
                return _with_answer_id(turn, finished.message_id)
            case "cancelled":
                return msgspec.structs.replace(turn, state="cancelled", message=None)
            case "lost":
                raise TurnLost


class _Running:
    """What a turn carries from its begin to its end."""

    def __init__(
        self,
        request: ChatRequest,
        turn_id: TurnId,
        lease_token: str,
        begun: Begun,
        chosen: Plan,
        shown: int,
    ) -> None:
        self.request = request
        self.turn_id = turn_id
        self.lease_token = lease_token
        self._begun = begun
        self._context = TurnContext(strategy=chosen.strategy, messages=shown)

    def finish(self, *, body: bytes | None, result: bytes) -> Finish:
        return Finish(
            ref=self.request.ref,
            turn_id=self.turn_id,
            lease_token=self.lease_token,
            body=body,
            result=result,
            once=self.request.once,
            durability=self.request.durability,
        )

    def turn(
        self, state: TurnState, answer: Answer, body: MessageBody, *, finished_milliseconds: int
    ) -> Turn:
        """The turn with its answer under a placeholder: its id is known once it is stored."""
        user_message_id = self._begun.user_message_id
        return Turn(
            turn_id=self.turn_id,
            session_id=self.request.ref.session_id,
            state=state,
            user_message_id=user_message_id,
            message=Message(id=ZERO_ID, **msgspec.structs.asdict(body)),
            usage=answer.usage,
            model=answer.model,
            context=self._context,
            started_at=id_time(user_message_id),
            finished_at=time_of(finished_milliseconds),
        )


def _check_sampling(request: ChatRequest) -> None:
    temperature, tokens = request.temperature, request.max_output_tokens
    if temperature is not None and not 0 <= temperature <= TEMPERATURE_MAX:
        raise InvalidValue.of("temperature", f"must be 0 to {TEMPERATURE_MAX:g}")
    if tokens is not None and not 1 <= tokens <= OUTPUT_TOKENS_MAX:
        raise InvalidValue.of("max_output_tokens", f"must be 1 to {OUTPUT_TOKENS_MAX}")


def _wire(message: Message) -> dict[str, Any]:
    """A stored message as a model's server takes it: nothing that is only ours."""
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        wire["name"] = message.name
    if message.tool_calls is not None:
        wire["tool_calls"] = message.tool_calls
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    return wire


def _replayed(replayed: Replayed) -> Turn:
    turn = msgspec.json.decode(replayed.result, type=Turn)
    return _with_answer_id(turn, replayed.message_id)


def _with_answer_id(turn: Turn, message_id: MessageId | None) -> Turn:
    if turn.message is None or message_id is None:
        return msgspec.structs.replace(turn, message=None)
    message = msgspec.structs.replace(turn.message, id=message_id)
    return msgspec.structs.replace(turn, message=message)

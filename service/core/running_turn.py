"""A turn between its begin and its end, and what becomes of it."""

import msgspec

from service.core.chat_request import ChatRequest
from service.core.prompting import Shown
from service.domain.context import Plan
from service.domain.errors import ChatMemoryError, ContextTooLarge
from service.domain.ids import ZERO_ID, MessageId, TurnId, id_time, time_of
from service.domain.messages import PINNED_ROLES, Message, MessageBody
from service.domain.turns import Turn, TurnContext, TurnError, TurnState, Usage
from service.ports import Begun, Finish, Replayed, TurnRecord

INTERRUPTED = TurnError(
    code="model_unavailable",
    title="The turn was interrupted",
    detail="The process that ran the turn ended, or lost the session.",
    retryable=True,
)


UNEXPECTED = TurnError(
    code="internal",
    title="Internal error",
    detail="The service made a mistake; its logs name it.",
    retryable=False,
)


class RunningTurn:
    """What a turn carries from its begin to its end."""

    def __init__(
        self,
        request: ChatRequest,
        lease_token: str,
        begun: Begun,
        chosen: Plan,
        *,
        started: float,
        stops_heard: int,
    ) -> None:
        self.request = request
        self.turn_id = begun.turn_id
        self.lease_token = lease_token
        self.attempt = lease_token[:8]
        self.begun = without_itself(begun)
        self.chosen = chosen
        self.started = started
        """When the request came, by the monotonic clock."""
        self.stops_heard = stops_heard
        """How often stops may have been missed, when it began."""
        self.shown: Shown | None = None
        """What the model was shown, once that is decided."""

    def show(self, shown: Shown) -> None:
        self.shown = shown

    def finish(self, *, body: bytes | None, result: bytes, asked: bytes = b"") -> Finish:
        return Finish(
            ref=self.request.ref,
            turn_id=self.turn_id,
            lease_token=self.lease_token,
            body=body,
            result=result,
            once=self.request.once,
            durability=self.request.durability,
            asked=asked,
            resumed=self.request.goes_on is not None,
        )

    def turn(
        self,
        state: TurnState,
        *,
        body: MessageBody | None = None,
        usage: Usage | None = None,
        model: str | None = None,
        error: TurnError | None = None,
        finished_milliseconds: int,
    ) -> Turn:
        """The turn with its answer under a placeholder: its id is known once it is stored."""
        user_message_id = self.begun.user_message_id
        shown = self.shown
        return Turn(
            turn_id=self.turn_id,
            session_id=self.request.ref.session_id,
            state=state,
            user_message_id=user_message_id,
            message=Message(id=ZERO_ID, **msgspec.structs.asdict(body)) if body else None,
            usage=self.request.usage + (usage or Usage()),
            model=model,
            context=TurnContext(
                strategy=self.chosen.strategy,
                messages=len(shown.messages) if shown else 0,
                tokens=shown.tokens.total if shown else 0,
            ),
            started_at=id_time(user_message_id),
            finished_at=time_of(finished_milliseconds),
            error=error,
            attempt=self.attempt,
        )


def halved(running: RunningTurn) -> Plan:
    """A plan for half of what the model was shown. Raises ContextTooLarge where that is nothing."""
    shown, chosen = running.shown, running.chosen
    spoken = [one for one in shown.messages if one.role not in PINNED_ROLES] if shown else []
    if shown is None or not spoken:
        raise ContextTooLarge("The conversation is longer than the model's context.")
    if chosen.max_tokens is not None:
        return msgspec.structs.replace(chosen, max_tokens=shown.tokens.total // 2)
    if len(spoken) == 1:
        raise ContextTooLarge("The conversation is longer than the model's context.")
    return msgspec.structs.replace(chosen, strategy="window", last=len(spoken) // 2)


def error_of(error: ChatMemoryError) -> TurnError:
    return TurnError(
        code=error.code, title=error.title, detail=error.detail, retryable=error.may_retry
    )


def replayed_turn(replayed: Replayed) -> Turn:
    turn = msgspec.json.decode(replayed.result, type=Turn)
    return with_answer_id(turn, replayed.message_id)


def recorded_turn(session_id: str, turn_id: TurnId, record: TurnRecord) -> Turn:
    """A turn as its record tells of it."""
    if record.state == "ended" and record.result:
        turn = msgspec.json.decode(record.result, type=Turn)
        return with_answer_id(turn, None if record.cleared else record.message_id)
    state: TurnState = "failed" if record.state == "ended" else record.state
    return Turn(
        turn_id=turn_id,
        session_id=session_id,
        state=state,
        user_message_id=record.user_message_id,
        started_at=id_time(record.user_message_id),
        error=INTERRUPTED if state == "interrupted" else None,
    )


def with_answer_id(turn: Turn, message_id: MessageId | None) -> Turn:
    if turn.message is None or message_id is None:
        return msgspec.structs.replace(turn, message=None)
    message = msgspec.structs.replace(turn.message, id=message_id)
    return msgspec.structs.replace(turn, message=message)


def without_itself(begun: Begun) -> Begun:
    """A summary that was made since may say what is said in the turn itself."""
    summary = begun.history.summary
    if summary is None or summary.through_id < begun.user_message_id:
        return begun
    history = msgspec.structs.replace(begun.history, summary=None)
    return msgspec.structs.replace(begun, history=history)

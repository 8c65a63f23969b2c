"""A turn between its begin and its end, and what becomes of it."""

import msgspec

from service.core.chat_request import ChatRequest
from service.core.prompting import Shown
from service.domain.context import Plan
from service.domain.ids import ZERO_ID, MessageId, TurnId, id_time, time_of
from service.domain.messages import Message, MessageBody
from service.domain.turns import Answer, Turn, TurnContext, TurnState
from service.ports import Begun, Finish, Replayed


class RunningTurn:
    """What a turn carries from its begin to its end."""

    def __init__(
        self, request: ChatRequest, turn_id: TurnId, lease_token: str, begun: Begun, chosen: Plan
    ) -> None:
        self.request = request
        self.turn_id = turn_id
        self.lease_token = lease_token
        self.begun = begun
        self.chosen = chosen

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
        self,
        state: TurnState,
        answer: Answer,
        body: MessageBody,
        shown: Shown,
        *,
        finished_milliseconds: int,
    ) -> Turn:
        """The turn with its answer under a placeholder: its id is known once it is stored."""
        user_message_id = self.begun.user_message_id
        return Turn(
            turn_id=self.turn_id,
            session_id=self.request.ref.session_id,
            state=state,
            user_message_id=user_message_id,
            message=Message(id=ZERO_ID, **msgspec.structs.asdict(body)),
            usage=answer.usage,
            model=answer.model,
            context=TurnContext(
                strategy=self.chosen.strategy,
                messages=len(shown.messages),
                tokens=shown.tokens.total,
            ),
            started_at=id_time(user_message_id),
            finished_at=time_of(finished_milliseconds),
        )


def replayed_turn(replayed: Replayed) -> Turn:
    turn = msgspec.json.decode(replayed.result, type=Turn)
    return with_answer_id(turn, replayed.message_id)


def with_answer_id(turn: Turn, message_id: MessageId | None) -> Turn:
    if turn.message is None or message_id is None:
        return msgspec.structs.replace(turn, message=None)
    message = msgspec.structs.replace(turn.message, id=message_id)
    return msgspec.structs.replace(turn, message=message)

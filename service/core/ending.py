"""Ending: what is stored of a turn, and what its caller is told, whichever way it ended."""

import asyncio
from typing import Final

import msgspec

from service.core.counting import Counting
from service.core.prompting import Offer
from service.core.running_turn import RunningTurn, with_answer_id
from service.domain.context import ContextOptions, plan
from service.domain.errors import ArchiveUnavailable, ChatMemoryError, TurnLost, Unavailable
from service.domain.messages import MessageBody, TurnCost, encode_body
from service.domain.observations import TurnEnded
from service.domain.turns import Answer, Turn, TurnError, TurnState, Usage, named_calls
from service.ports import Clock, Finish, Finished, Observer, Turns

STORE_SECONDS: Final = 8.0
"""How long an end is tried to be stored while its store is away: a failover, within a lease."""
STORE_PAUSE_SECONDS: Final = 0.25


class Ending:
    """Ends turns that were begun in this process."""

    def __init__(
        self,
        turns: Turns,
        counting: Counting,
        *,
        offer_summary: Offer,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._turns = turns
        self._counting = counting
        self._offer_summary = offer_summary
        self._clock = clock
        self._observer = observer

    async def answered(self, running: RunningTurn, answer: Answer, *, model_seconds: float) -> Turn:
        """Store the model's answer. Raises TurnLost."""
        state: TurnState = "completed" if answer.complete else "incomplete"
        body = MessageBody(
            role="assistant",
            content=answer.content,
            tool_calls=named_calls(answer.tool_calls, running.request.said),
            turn_id=running.turn_id,
            status=None if answer.complete else "incomplete",
            cost=TurnCost(
                model=answer.model,
                input_tokens=answer.usage.input_tokens,
                output_tokens=answer.usage.output_tokens,
                cached_tokens=answer.usage.cached_tokens,
                reasoning_tokens=answer.usage.reasoning_tokens,
                goes_on=running.request.goes_on is not None,
            ),
        )
        turn = await self._finish(running, state, body, usage=answer.usage, model=answer.model)
        self._offer(running)
        overhead = self._clock.monotonic() - running.started - model_seconds
        waits = turn.state == "completed" and bool(body.tool_calls)
        outcome = "tool_calls" if waits else turn.state
        self._observer.observe(TurnEnded(outcome=outcome, overhead_seconds=overhead))
        return turn

    async def kept(
        self, running: RunningTurn, text: str, state: TurnState, error: TurnError | None
    ) -> Turn:
        """Store what was said so far, if anything was. Raises TurnLost."""
        body = None
        if text:
            body = MessageBody(
                role="assistant", content=text, turn_id=running.turn_id, status="incomplete"
            )
        turn = await self._finish(running, state, body, error=error)
        self._observer.observe(TurnEnded(outcome=turn.state, overhead_seconds=None))
        return turn

    async def failed(self, running: RunningTurn, state: TurnState, error: TurnError) -> Turn:
        """The user's message stays, and the same key runs the turn again."""
        milliseconds = self._clock.milliseconds()
        turn = running.turn(state, error=error, finished_milliseconds=milliseconds)
        finish = running.finish(body=None, result=msgspec.json.encode(turn))
        try:
            # Once: no answer is lost with it, and whoever waits is to hear of the trouble.
            finished = await self._turns.fail(finish)
        except ChatMemoryError:
            # The lease ends by itself, and the caller learns of the first trouble.
            pass
        else:
            if finished.outcome == "cancelled":
                turn = msgspec.structs.replace(turn, state="cancelled", error=None)
        self._observer.observe(TurnEnded(outcome=turn.state, overhead_seconds=None))
        return turn

    async def _stored(self, finish: Finish) -> Finished:
        """Store an end, again and again while the store is away: the answer exists nowhere else.

        A store that was away for a moment has the session's lease still; one that took the end
        knows it again. Not for a wait that goes beyond the end itself.
        """
        deadline = self._clock.monotonic() + STORE_SECONDS
        while True:
            try:
                return await self._turns.finish(finish)
            except Unavailable as error:
                waited = isinstance(error, ArchiveUnavailable) and finish.durability == "archived"
                if waited or self._clock.monotonic() + STORE_PAUSE_SECONDS > deadline:
                    raise
            await asyncio.sleep(STORE_PAUSE_SECONDS)

    async def _finish(
        self,
        running: RunningTurn,
        state: TurnState,
        body: MessageBody | None,
        *,
        usage: Usage | None = None,
        model: str | None = None,
        error: TurnError | None = None,
    ) -> Turn:
        counted = await self._counting.counted(body) if body else None
        turn = running.turn(
            state,
            body=counted,
            usage=usage,
            model=model,
            error=error,
            finished_milliseconds=self._clock.milliseconds(),
        )
        finish = running.finish(
            body=encode_body(counted) if counted else None,
            result=msgspec.json.encode(turn),
            asked=_asked(running, counted, turn) if counted and counted.tool_calls else b"",
        )
        finished = await self._stored(finish)
        match finished.outcome:
            case "stored":
                return with_answer_id(turn, finished.message_id)
            case "cancelled":
                return msgspec.structs.replace(turn, state="cancelled", message=None, error=None)
            case "lost":
                self._observer.observe(TurnEnded(outcome="interrupted", overhead_seconds=None))
                raise TurnLost

    def _offer(self, running: RunningTurn) -> None:
        shown = running.shown
        if shown is None or not shown.wants_summary:
            return
        own = plan(running.begun.history.document.context or ContextOptions())
        wanted = own if own.strategy == "summary" else running.chosen
        self._offer_summary(running.request.ref, wanted, shown.beside)


def _asked(running: RunningTurn, answer: MessageBody, turn: Turn) -> bytes:
    """What the turn goes on with when its calls are answered; those of a cut answer are not."""
    if turn.state != "completed":
        return b""
    request = running.request
    return request.asked(said=(*request.said, answer), usage=turn.usage)

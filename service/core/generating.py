"""Generating: a turn from its begin to its end, in a task that no caller's connection can end."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

import msgspec

from service.core.background import ended, owned_task
from service.core.counting import Counting
from service.core.prompting import Offer
from service.core.running_turn import INTERRUPTED, UNEXPECTED, RunningTurn, error_of, with_answer_id
from service.domain.context import ContextOptions, plan
from service.domain.deltas import Place, Told, joined, told_after
from service.domain.errors import ChatMemoryError, Draining, TurnLost
from service.domain.ids import id_time
from service.domain.messages import MessageBody, TurnCost, encode_body
from service.domain.observations import TurnEnded
from service.domain.turns import Answer, Delta, Prompt, Turn, TurnError, TurnState, Usage
from service.ports import Clock, Observer, Pieces, StreamingModel, Turns

PUBLISH_SECONDS: Final = 0.05
"""Between two writes of what was said meanwhile, for readers elsewhere: some tens a second."""
WATCH_SECONDS: Final = 0.5
"""Between two looks at whether somebody asks the turn to end; its lease is renewed with them."""
RENEWALS_PER_LEASE: Final = 3

Ask = Callable[[RunningTurn], Awaitable[Prompt]]
"""Decides what the model is shown of the session, and notes it at the turn."""


class GenerationSettings(msgspec.Struct, frozen=True, kw_only=True):
    deadline_seconds: float
    lease_seconds: float


class Generations:
    """The turns that run in this process; they end with it, not with whoever asked for them."""

    def __init__(
        self,
        turns: Turns,
        model: StreamingModel,
        counting: Counting,
        settings: GenerationSettings,
        *,
        ask: Ask,
        offer_summary: Offer,
        clock: Clock,
        observer: Observer,
        pieces: Pieces | None,
    ) -> None:
        self.turns = turns
        self.pieces = pieces
        self.model = model
        self.counting = counting
        self.settings = settings
        self.ask = ask
        self.offer_summary = offer_summary
        self.clock = clock
        self.observer = observer
        self._running: dict[str, Generation] = {}

    def start(self, running: RunningTurn, *, streams: bool, started: float) -> "Generation":
        """``started``: when the request came, by the monotonic clock."""
        generation = Generation(self, running, streams=streams, started=started)
        self._running[running.turn_id] = generation
        generation.task.add_done_callback(lambda _: self._forget(generation))
        return generation

    def of(self, turn_id: str) -> "Generation | None":
        """A turn that runs here, to be followed without a store."""
        return self._running.get(turn_id)

    async def stop(self, *, within_seconds: float = 0) -> None:
        """Let what runs come to its end within the time; the rest is interrupted."""
        tasks = [generation.task for generation in self._running.values()]
        if tasks and within_seconds:
            await asyncio.wait(tasks, timeout=within_seconds)
        await asyncio.gather(*map(ended, tasks))

    def _forget(self, generation: "Generation") -> None:
        if self._running.get(generation.running.turn_id) is generation:
            del self._running[generation.running.turn_id]


class Generation:
    """One turn that runs here: asks the model, keeps the lease, stores the end, tells followers."""

    def __init__(
        self, owner: Generations, running: RunningTurn, *, streams: bool, started: float
    ) -> None:
        self.running = running
        self.said: list[Delta] = []
        self._owner = owner
        self._streams = streams
        self._started = started
        self._model_seconds = 0.0
        self._moved = asyncio.Event()
        self._asked_to_end = asyncio.Event()
        self.end: Turn | None = None
        self.task: asyncio.Task[Turn] = owned_task(self._run(), name="turn")
        self.task.add_done_callback(self._tell)

    async def turn(self) -> Turn:
        """The turn's end. Raises what ended it, where nothing was said; TurnLost; Draining."""
        try:
            return await asyncio.shield(self.task)
        except asyncio.CancelledError:
            if self.task.cancelled():
                raise Draining("The service is shutting down; the turn was not finished.") from None
            raise

    def begun_turn(self) -> Turn:
        """The turn as it stands while it runs."""
        user_message_id = self.running.begun.user_message_id
        return Turn(
            turn_id=self.running.turn_id,
            session_id=self.running.request.ref.session_id,
            state="running",
            user_message_id=user_message_id,
            started_at=id_time(user_message_id),
        )

    def cancel(self) -> None:
        """Ask it to end; what was said is kept."""
        self._asked_to_end.set()

    async def follow(self, wanted: Place) -> AsyncGenerator[Told]:
        """What is said after a place, as it comes, until the turn's end."""
        seen, start = 0, Place()
        while True:
            moved, ended_ = self._moved, self.task.done()
            fresh = self.said[seen:]
            for told in told_after(wanted, start, fresh):
                yield told
            seen += len(fresh)
            start = functools.reduce(Place.after, fresh, start)
            if ended_:
                return
            await moved.wait()

    async def _run(self) -> Turn:
        asking = owned_task(self._ask(), name="turn-model")
        watching = owned_task(self._watch(), name="turn-lease")
        publishing = owned_task(self._publish(), name="turn-pieces")
        try:
            await asyncio.wait([asking, watching], return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                await ended(asking)
                return await self._keep_what_was_said("cancelled", None)
            return await self._answered(asking)
        except asyncio.CancelledError:
            await ended(asking)
            await asyncio.shield(self._interrupted())
            raise
        finally:
            await ended(watching)
            await ended(publishing)

    async def _ask(self) -> Answer:
        owner, deadline = self._owner, self._owner.settings.deadline_seconds
        prompt = await owner.ask(self.running)
        asked = owner.clock.monotonic()
        try:
            if not self._streams:
                return await owner.model.answer(prompt, deadline_seconds=deadline)
            return await self._listen(prompt, deadline)
        finally:
            self._model_seconds = owner.clock.monotonic() - asked

    async def _listen(self, prompt: Prompt, deadline: float) -> Answer:
        answer: Answer | None = None
        pieces = self._owner.model.stream(prompt, deadline_seconds=deadline)
        try:
            async for piece in pieces:
                if isinstance(piece, Answer):
                    answer = piece
                else:
                    self.said.append(piece)
                    self._move()
        finally:
            await pieces.aclose()
        if answer is None:
            raise AssertionError("a stream ends with its answer")
        return answer

    async def _watch(self) -> None:
        """Renew the lease until somebody asks the turn to end, or it is no longer ours.

        A failed renewal is tried again. Whether the session was cleared or taken, its end tells.
        """
        settings, turns = self._owner.settings, self._owner.turns
        pause = min(WATCH_SECONDS, settings.lease_seconds / RENEWALS_PER_LEASE)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._asked_to_end.wait()
            if self._asked_to_end.is_set():
                return
            with contextlib.suppress(ChatMemoryError):
                state = await turns.renew(self.running.request.ref, self.running.lease_token)
                if state != "held":
                    return

    async def _publish(self) -> None:
        """Tell readers elsewhere what was said since the last time, in one write.

        What could not be written is written with the next.
        """
        pieces, request = self._owner.pieces, self.running.request
        if pieces is None or not self._streams:
            return
        seen, start = 0, Place()
        while True:
            await asyncio.sleep(PUBLISH_SECONDS)
            fresh = self.said[seen:]
            if not fresh:
                continue
            piece = joined(fresh)
            with contextlib.suppress(ChatMemoryError):
                state = await pieces.publish(
                    request.ref, self.running.turn_id, self.running.lease_token, start, piece
                )
                if state != "held":
                    self._asked_to_end.set()
                seen, start = seen + len(fresh), start.after(piece)

    async def _answered(self, asking: asyncio.Task[Answer]) -> Turn:
        try:
            answer = asking.result()
        except ChatMemoryError as error:
            if self._text():
                # It has gone out: what was said is kept, and is all there is.
                return await self._keep_what_was_said("incomplete", error_of(error))
            await self._fail("failed", error_of(error))
            raise
        except BaseException:
            await self._fail("failed", UNEXPECTED)
            raise
        state: TurnState = "completed" if answer.complete else "incomplete"
        body = self._body(answer.content, complete=answer.complete)
        body = msgspec.structs.replace(
            body,
            tool_calls=answer.tool_calls,
            cost=TurnCost(
                model=answer.model,
                input_tokens=answer.usage.input_tokens,
                output_tokens=answer.usage.output_tokens,
            ),
        )
        turn = await self._finish(state, body, usage=answer.usage, model=answer.model)
        self._offer()
        return turn

    async def _keep_what_was_said(self, state: TurnState, error: TurnError | None) -> Turn:
        text = self._text()
        body = self._body(text, complete=False) if text else None
        return await self._finish(state, body, error=error)

    async def _finish(
        self,
        state: TurnState,
        body: MessageBody | None,
        *,
        usage: Usage | None = None,
        model: str | None = None,
        error: TurnError | None = None,
    ) -> Turn:
        owner = self._owner
        counted = await owner.counting.counted(body) if body else None
        turn = self.running.turn(
            state,
            body=counted,
            usage=usage,
            model=model,
            error=error,
            finished_milliseconds=owner.clock.milliseconds(),
        )
        finish = self.running.finish(
            body=encode_body(counted) if counted else None, result=msgspec.json.encode(turn)
        )
        finished = await asyncio.shield(owner.turns.finish(finish))
        match finished.outcome:
            case "stored":
                turn = with_answer_id(turn, finished.message_id)
            case "cancelled":
                turn = msgspec.structs.replace(turn, state="cancelled", message=None, error=None)
            case "lost":
                self._observe("interrupted")
                raise TurnLost
        self.end = turn
        overhead = owner.clock.monotonic() - self._started - self._model_seconds
        owner.observer.observe(TurnEnded(outcome=turn.state, overhead_seconds=overhead))
        return turn

    async def _interrupted(self) -> None:
        await self._fail("interrupted", INTERRUPTED)

    async def _fail(self, state: TurnState, error: TurnError | None) -> None:
        """The user's message stays, and the same key runs the turn again."""
        self._observe(state)
        milliseconds = self._owner.clock.milliseconds()
        self.end = self.running.turn(state, error=error, finished_milliseconds=milliseconds)
        finish = self.running.finish(body=None, result=msgspec.json.encode(self.end))
        try:
            await asyncio.shield(self._owner.turns.fail(finish))
        except ChatMemoryError:
            # The lease ends by itself, and the caller learns of the first trouble.
            return

    def _offer(self) -> None:
        shown, begun = self.running.shown, self.running.begun
        if shown is None or not shown.wants_summary:
            return
        own = plan(begun.history.document.context or ContextOptions())
        wanted = own if own.strategy == "summary" else self.running.chosen
        self._owner.offer_summary(self.running.request.ref, wanted, shown.beside)

    def _body(self, content: str | None, *, complete: bool) -> MessageBody:
        return MessageBody(
            role="assistant",
            content=content,
            turn_id=self.running.turn_id,
            status=None if complete else "incomplete",
        )

    def _text(self) -> str:
        return "".join(delta.text for delta in self.said)

    def _observe(self, outcome: TurnState) -> None:
        self._owner.observer.observe(TurnEnded(outcome=outcome, overhead_seconds=None))

    def _move(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def _tell(self, task: asyncio.Task[Turn]) -> None:
        # An error is told to whoever waits; where nobody does, it was observed all the same.
        if not task.cancelled():
            task.exception()
        self._move()

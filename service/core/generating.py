"""Generating: a turn from its begin to its end, in a task that no caller's connection can end."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final, Protocol

from service.core.background import ended, owned_task, unstopped
from service.core.ending import Ending
from service.core.running_turn import INTERRUPTED, UNEXPECTED, RunningTurn, error_of
from service.domain.deltas import Place, Told, joined, told_after
from service.domain.errors import ChatMemoryError, ContextTooLarge, Draining, TurnLost
from service.domain.ids import id_time
from service.domain.turns import Answer, Delta, Prompt, Turn
from service.ports import Clock, Pieces, StreamingModel, Turns

PUBLISH_SECONDS: Final = 0.05
"""Between two writes of what was said meanwhile, for readers elsewhere: some tens a second."""
WATCH_SECONDS: Final = 0.5
"""Between two looks at whether somebody asks the turn to end, where nobody tells it to look."""
RENEWALS_PER_LEASE: Final = 3


class Ask(Protocol):
    """Decides what the model is shown of the session, and notes it at the turn."""

    async def __call__(self, running: RunningTurn, *, shrinks: bool) -> Prompt:
        """``shrinks``: half of what was shown before.

        Raises ContextTooLarge where that is nothing.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Generating:
    """What all turns of a process are generated with."""

    turns: Turns
    model: StreamingModel
    ending: Ending
    ask: Ask
    clock: Clock
    pieces: Pieces | None
    """None where the stores have no place for them: readers elsewhere wait for the end."""
    deadline_seconds: float
    lease_seconds: float


class Generation:
    """One turn that runs here: asks the model, keeps the lease, stores the end, tells followers."""

    def __init__(self, owner: Generating, running: RunningTurn, *, streams: bool) -> None:
        self.running = running
        self.said: list[Delta] = []
        self._followers = 0
        self._left = False
        self._owner = owner
        self._streams = streams
        self._model_seconds = 0.0
        self._moved = asyncio.Event()
        self._looks = asyncio.Event()
        self._asked_to_end = False
        self.end: Turn | None = None
        self.trouble: BaseException | None = None
        """What ended it, or kept its end from being stored."""
        self.task: asyncio.Task[Turn] = owned_task(self._run(), name="turn")
        self.task.add_done_callback(self._tell)

    async def turn(self) -> Turn:
        """The turn's end. Raises what ended it, where nothing was said; TurnLost; Draining."""
        turn = await asyncio.shield(self.task)
        if turn.state == "interrupted":
            raise Draining("The service is shutting down; the turn was not finished.")
        if self.trouble is not None and turn.state == "failed":
            raise self.trouble
        return turn

    def told_end(self) -> Turn:
        """What followers are told last: the end, or why it could not be stored."""
        if self.end is not None:
            return self.end
        error = error_of(self.trouble) if isinstance(self.trouble, ChatMemoryError) else UNEXPECTED
        milliseconds = self._owner.clock.milliseconds()
        lost = isinstance(self.trouble, TurnLost)
        state = "interrupted" if lost else "failed"
        return self.running.turn(state, error=error, finished_milliseconds=milliseconds)

    def begun_turn(self) -> Turn:
        """The turn as it stands while it runs."""
        user_message_id = self.running.begun.user_message_id
        return Turn(
            turn_id=self.running.turn_id,
            session_id=self.running.request.ref.session_id,
            state="running",
            user_message_id=user_message_id,
            started_at=id_time(user_message_id),
            attempt=self.running.attempt,
        )

    def cancel(self) -> None:
        """Ask it to end; what was said is kept."""
        self._asked_to_end = True
        self._looks.set()

    def leave(self) -> None:
        """Ask it to end as soon as nobody of this process reads it."""
        self._left = True
        if not self._followers:
            self.cancel()

    async def follow(self, wanted: Place) -> AsyncGenerator[Told]:
        """What is said after a place, as it comes, until the turn's end."""
        seen, start = 0, Place(attempt=self.running.attempt)
        wanted = wanted.of(self.running.attempt)
        self._followers += 1
        try:
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
        finally:
            self._followers -= 1
            if self._left:
                self.leave()

    async def _run(self) -> Turn:
        asking = owned_task(self._ask(), name="turn-model")
        watching = owned_task(self._watch(), name="turn-lease")
        publishing = owned_task(self._publish(), name="turn-pieces")
        stopped = False
        try:
            await asyncio.wait([asking, watching], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            stopped = True
        try:
            # Whoever stops this process waits for it: an end that is being stored is told as such.
            self.end = await unstopped(self._stored(asking, stopped=stopped), name="turn-end")
        except BaseException as error:
            self.trouble = error
            raise
        finally:
            await unstopped(ended(watching), name="turn-end")
            await unstopped(ended(publishing), name="turn-end")
        return self.end

    async def _stored(self, asking: asyncio.Task[Answer], *, stopped: bool) -> Turn:
        """Store the end that the turn came to, by its model, somebody's wish or its process."""
        if asking.done():
            return await self._answered(asking)
        await ended(asking)
        ending = self._owner.ending
        if stopped:
            return await ending.failed(self.running, "interrupted", INTERRUPTED)
        return await ending.kept(self.running, self._text(), "cancelled", None)

    async def _ask(self) -> Answer:
        owner, deadline = self._owner, self._owner.deadline_seconds
        prompt = await owner.ask(self.running, shrinks=False)
        asked = owner.clock.monotonic()
        try:
            return await self._told(prompt, deadline)
        except ContextTooLarge as error:
            left = deadline - (owner.clock.monotonic() - asked)
            if left <= 0 or self.said:
                raise
            # The model's context is smaller than what it was shown: once more, with half of it.
            return await self._told(await self._half(error), left)
        finally:
            self._model_seconds = owner.clock.monotonic() - asked

    async def _half(self, error: ContextTooLarge) -> Prompt:
        """Raises the model's own error where half of it is nothing."""
        try:
            return await self._owner.ask(self.running, shrinks=True)
        except ContextTooLarge:
            raise error from None

    async def _told(self, prompt: Prompt, deadline: float) -> Answer:
        if self._streams:
            return await self._listen(prompt, deadline)
        return await self._owner.model.answer(prompt, deadline_seconds=deadline)

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
        turns, token = self._owner.turns, self.running.lease_token
        with turns.stops.told(token, self._looks.set, since=self.running.stops_heard):
            renewed = True
            while True:
                await self._until_look(renewed=renewed)
                if self._asked_to_end:
                    return
                try:
                    renewed = await turns.renew(self.running.request.ref, token) == "held"
                except ChatMemoryError:
                    renewed = False
                else:
                    if not renewed:
                        return

    async def _until_look(self, *, renewed: bool) -> None:
        """Until it is told to look, or it is time to renew the lease, or to try that again."""
        pause = self._owner.lease_seconds / RENEWALS_PER_LEASE
        if not (renewed and self._owner.turns.stops.listening):
            pause = min(WATCH_SECONDS, pause)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._looks.wait()
        self._looks.clear()

    async def _publish(self) -> None:
        """Tell readers elsewhere what was said since the last time, in one write.

        What could not be written is written with the next.
        """
        pieces, request = self._owner.pieces, self.running.request
        if pieces is None or not self._streams:
            return
        seen, start = 0, Place(attempt=self.running.attempt)
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
                    self.cancel()
                seen, start = seen + len(fresh), start.after(piece)

    async def _answered(self, asking: asyncio.Task[Answer]) -> Turn:
        ending = self._owner.ending
        try:
            answer = asking.result()
        except ChatMemoryError as error:
            if text := self._text():
                # It has gone out: what was said is kept, and is all there is.
                return await ending.kept(self.running, text, "incomplete", error_of(error))
            self.trouble = error
            return await ending.failed(self.running, "failed", error_of(error))
        except Exception as error:  # noqa: BLE001  # Whoever waits for the turn is told of it.
            self.trouble = error
            return await ending.failed(self.running, "failed", UNEXPECTED)
        return await ending.answered(self.running, answer, model_seconds=self._model_seconds)

    def _text(self) -> str:
        return "".join(delta.text for delta in self.said)

    def _move(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def _tell(self, task: asyncio.Task[Turn]) -> None:
        # An error is told to whoever waits; where nobody does, it was observed all the same.
        if not task.cancelled():
            task.exception()
        self._move()

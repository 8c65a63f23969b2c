"""One run: the stack, its clients, the faults, and the verdict."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from tests.chaos.checker import check
from tests.chaos.clients import Client
from tests.chaos.faults import carry_out
from tests.chaos.inspection import Watch, final_state, until_archived
from tests.chaos.records import Call, write_lines
from tests.chaos.report import Outcome, markdown
from tests.chaos.schedule import Fault
from tests.chaos.stack import Stack, running_stack

MIX: Mapping[str, float] = {
    "append": 30,
    "batch": 25,
    "archived": 6,
    "unkeyed": 5,
    "shared": 12,
    "chat": 8,
    "read": 18,
    "clear": 0.7,
}


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    seed: int
    seconds: float
    faults: Sequence[Fault]
    clients: int = 12
    mix: Mapping[str, float] = msgspec.field(default_factory=lambda: dict(MIX))
    attempt_seconds: float = 6.0
    """How long a client waits for an answer."""
    drain_seconds: float = 60.0
    """How long the flushers may take for what is left in the journal."""
    model_seconds: float = 0.0
    """How long the model thinks."""
    environment: Mapping[str, str] = {}
    module: str = "service"
    """What is run in its place with a planted bug."""


async def run(plan: Plan, folder: Path) -> Outcome:
    """Writes ``calls.jsonl`` and ``report.md`` to the folder, beside the processes' logs."""
    calls: list[Call] = []
    async with running_stack(folder, environment=plan.environment, module=plan.module) as stack:
        stack.model.echo_seconds = plan.model_seconds
        watch = Watch(stack)
        watching = asyncio.create_task(watch.run())
        try:
            done = await _under_fire(stack, plan, calls)
            stack.heal()
            for service in stack.services.values():
                await service.until_ready()
            began = time.monotonic()
            await until_archived(stack, plan.drain_seconds)
            drained = time.monotonic() - began
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        sessions = sorted({call.session for call in calls})
        final = await final_state(stack, sessions, _apis(stack))
        ended = await asyncio.gather(*(it.stop() for it in stack.services.values()))
        exits = dict(zip(stack.services, ended, strict=True))
        unasked = [end for service in stack.services.values() for end in service.unasked_ends]
    outcome = Outcome(
        seed=plan.seed,
        seconds=plan.seconds,
        schedule=list(plan.faults),
        faults=done,
        calls=calls,
        violations=check(calls, final, watch.exposed),
        drained_seconds=drained,
        looks=watch.looks,
        unasked_ends=unasked,
        exits=exits,
    )
    write_lines(folder / "calls.jsonl", calls)
    (folder / "final.json").write_bytes(msgspec.json.encode(final))
    (folder / "report.md").write_text(markdown(outcome), "utf-8")
    return outcome


async def _under_fire(stack: Stack, plan: Plan, calls: list[Call]):
    """Clients call until the last fault is over and the time is up, each to the end of its call."""
    until = time.monotonic() + plan.seconds
    is_over = asyncio.Event()
    apis = _apis(stack)
    async with asyncio.TaskGroup() as group:
        for number in range(plan.clients):
            client = Client(
                f"c{number}",
                plan.seed * 1000 + number,
                apis,
                calls,
                weights=plan.mix,
                attempt_seconds=plan.attempt_seconds,
            )
            group.create_task(client.run(is_over.is_set))
        done = await carry_out(stack, plan.faults)
        await asyncio.sleep(until - time.monotonic())
        is_over.set()
    return done


def _apis(stack: Stack) -> dict[str, str]:
    return {name: stack.url_of(name) for name in ("api0", "api1")}

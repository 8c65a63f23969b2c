"""Carrying a schedule out."""

import asyncio
import contextlib
import time
from collections.abc import Sequence

import msgspec

from tests.chaos.proxy import Link
from tests.chaos.schedule import LINKS, SERVICES, Fault
from tests.chaos.stack import Stack
from tests.support.polling import eventually


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A fault that was made. ``met`` is False where there was nothing to break."""

    fault: Fault
    start: float
    end: float
    """When it was over: what was broken may work again from here on."""
    met: bool


async def carry_out(stack: Stack, faults: Sequence[Fault]) -> list[Done]:
    """Returns when the last one is over; raises what went wrong in making one.

    A target that is not back yet, such as a database that recovers, has its next fault after that.
    """
    began = time.monotonic()
    free = {fault.target: asyncio.Lock() for fault in faults}
    async with asyncio.TaskGroup() as group:
        running = [
            group.create_task(_at(stack, fault, began, free[fault.target])) for fault in faults
        ]
    return [task.result() for task in running]


async def _at(stack: Stack, fault: Fault, began: float, free: asyncio.Lock) -> Done:
    await asyncio.sleep(began + fault.at - time.monotonic())
    async with free:
        start = time.monotonic()
        met = await _make(stack, fault)
        return Done(fault=fault, start=start, end=time.monotonic(), met=met)


async def _make(stack: Stack, fault: Fault) -> bool:
    if fault.target in LINKS:
        return await _on_link(stack.links[fault.target], fault)
    if fault.target in SERVICES:
        return await _on_service(stack, fault)
    if fault.target == "redis":
        return await _on_redis(stack, fault)
    return await _on_postgres(stack, fault)


async def _on_link(link: Link, fault: Fault) -> bool:
    dropped = link.dropped_replies
    link.break_by(fault.kind)  # pyright: ignore[reportArgumentType]  # The deck holds its kinds.
    try:
        if fault.kind != "drop_reply":
            await asyncio.sleep(fault.seconds)
            return True
        with contextlib.suppress(AssertionError):
            await eventually(lambda: link.dropped_replies > dropped, fault.seconds)
        return link.dropped_replies > dropped
    finally:
        link.heal()


async def _on_service(stack: Stack, fault: Fault) -> bool:
    service = stack.services[fault.target]
    if fault.kind in {"kill", "restart"}:
        if fault.kind == "kill":
            service.kill()
        else:
            await service.end()
        await asyncio.sleep(fault.seconds)
        service.revive()
    else:
        service.pause()
        await asyncio.sleep(fault.seconds)
        service.resume()
    return True


async def _on_redis(stack: Stack, fault: Fault) -> bool:
    redis = stack.redis
    match fault.kind:
        case "kill" | "restart":
            await (redis.kill() if fault.kind == "kill" else redis.end())
            await asyncio.sleep(fault.seconds)
            await redis.revive()
        case "pause":
            redis.pause()
            await asyncio.sleep(fault.seconds)
            redis.resume()
        case "full":
            await redis.fill()
            await asyncio.sleep(fault.seconds)
            await redis.free()
        case _:
            return await redis.fail_over()
    return True


async def _on_postgres(stack: Stack, fault: Fault) -> bool:
    postgres = stack.postgres
    match fault.kind:
        case "kill" | "restart":
            await (postgres.kill() if fault.kind == "kill" else postgres.end())
            await asyncio.sleep(fault.seconds)
            await postgres.revive()
        case "pause":
            postgres.pause()
            await asyncio.sleep(fault.seconds)
            postgres.resume()
        case _:
            try:
                await postgres.exhaust()
                await asyncio.sleep(fault.seconds)
            finally:
                await postgres.free()
    return True

"""Readiness: whether this process should get traffic, decided from its dependencies."""

import asyncio
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from service.ports import Probe

PROBE_SECONDS: Final = 1.0

Mode = Literal["normal", "archive-down", "hot-down"]


class Dependency(msgspec.Struct, frozen=True, kw_only=True):
    probe: Probe
    required: bool
    """False where the process accepts work without it."""
    mode: Mode
    """The mode of the service while it is away."""


class DependencyHealth(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    ok: bool
    problem: str | None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    ready: bool
    draining: bool
    mode: Mode
    dependencies: tuple[DependencyHealth, ...]


class Readiness:
    """Asks every dependency, each bounded in time; a draining process is not ready."""

    def __init__(self, dependencies: Sequence[Dependency]) -> None:
        self._dependencies = tuple(dependencies)
        self._draining = False

    @property
    def draining(self) -> bool:
        return self._draining

    def drain(self) -> None:
        self._draining = True

    async def health(self) -> Health:
        problems = await asyncio.gather(*(_ask(d.probe) for d in self._dependencies))
        pairs = list(zip(self._dependencies, problems, strict=True))
        away = [dependency for dependency, problem in pairs if problem is not None]
        modes: set[Mode] = {dependency.mode for dependency in away}
        return Health(
            ready=not self._draining and not any(dependency.required for dependency in away),
            draining=self._draining,
            mode=_worst(modes),
            dependencies=tuple(
                DependencyHealth(name=d.probe.name, ok=problem is None, problem=problem)
                for d, problem in pairs
            ),
        )


def _worst(modes: set[Mode]) -> Mode:
    if "hot-down" in modes:
        return "hot-down"
    return "archive-down" if "archive-down" in modes else "normal"


async def _ask(probe: Probe) -> str | None:
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            return await probe.problem()
    except TimeoutError:
        return f"no answer within {PROBE_SECONDS:g} s"

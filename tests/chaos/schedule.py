"""What goes wrong when: drawn from a seed, so that a run can be had again."""

import random
from collections.abc import Sequence

import msgspec

LINKS = (
    *("clients-api0", "clients-api1"),
    *("api0-redis", "api1-redis", "flusher0-redis", "flusher1-redis"),
    *("api0-postgres", "api1-postgres", "flusher0-postgres", "flusher1-postgres"),
    *("api0-model", "api1-model"),
)
LINK_FAULTS = ("cut", "black_hole", "delay", "drop_reply", "half_open")
SERVICES = ("api0", "api1", "flusher0", "flusher1")
STORES = ("redis", "postgres")
ENDS = ("kill", "pause", "restart")

SECONDS_OF_FAULT = {
    "cut": (0.1, 2.0),
    "black_hole": (0.3, 3.0),
    "delay": (0.5, 3.0),
    # Armed so long; over as soon as one reply was dropped.
    "drop_reply": (1.0, 2.0),
    "half_open": (0.3, 3.0),
    "kill": (0.1, 1.5),
    "pause": (0.3, 4.0),
    "restart": (0.1, 1.0),
    "exhausted": (0.5, 3.0),
    "full": (0.3, 2.0),
    "failover": (1.0, 1.0),
}


RESTART_SECONDS = 8.0
"""A clean end may take its grace time first."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    at: float
    """Seconds from the start of the run."""
    kind: str
    target: str
    seconds: float
    """How long it lasts; of a kill or a restart, until the process may start again."""

    def __str__(self) -> str:
        return f"{self.at:8.3f}  {self.kind:<10} {self.target:<18} {self.seconds:.3f} s"


def all_faults() -> list[tuple[str, str]]:
    return [
        *((kind, link) for link in LINKS for kind in LINK_FAULTS),
        *((kind, process) for process in (*SERVICES, *STORES) for kind in ENDS),
        # The rarer and more telling ones have more than one card in the deck.
        *3 * [("exhausted", "postgres"), ("full", "redis"), ("failover", "redis")],
    ]


def draw(seed: int, seconds: float, *, per_second: float) -> list[Fault]:
    """Faults over that time: each kind of each target once before any comes again.

    A target has one fault at a time; several targets may have theirs at once.
    """
    chance = random.Random(seed)
    deck: list[tuple[str, str]] = []
    free_at: dict[str, float] = {}
    faults: list[Fault] = []
    at = chance.uniform(0.5, 1.0)
    while at < seconds:
        if not deck:
            deck = all_faults()
            chance.shuffle(deck)
        place = next((p for p, (_, t) in enumerate(deck) if free_at.get(t, 0) <= at), None)
        if place is not None:
            kind, target = deck.pop(place)
            low, high = SECONDS_OF_FAULT[kind]
            fault = Fault(
                at=round(at, 3),
                kind=kind,
                target=target,
                seconds=round(min(chance.uniform(low, high), max(low, seconds - at)), 3),
            )
            free_at[target] = at + fault.seconds + (RESTART_SECONDS if kind == "restart" else 0.5)
            faults.append(fault)
        at += chance.expovariate(per_second)
    return faults


def listed(faults: Sequence[Fault]) -> str:
    return "\n".join(map(str, faults))

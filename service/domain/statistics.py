"""Statistics: what was said and what it cost, by day of acceptance (UTC)."""

from collections.abc import Iterable, Sequence
from datetime import date
from typing import Final, Literal

import msgspec

from service.domain.ids import ID_BYTES_MAX, MessageId, id_time
from service.domain.messages import cost_of_body

By = Literal["day", "week", "user", "model"]

RANGE_DAYS_MAX: Final = 366
RANGE_DAYS_DEFAULT: Final = 30
ITEMS_MAX: Final = 1000


class Counted(msgspec.Struct, kw_only=True):
    """Counts of one day, user and model; '' stands for none."""

    messages: int = 0
    turns: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, body: bytes) -> None:
        self.messages += 1
        if (cost := cost_of_body(body)) is not None:
            self.turns += not cost.goes_on
            self.input_tokens += cost.input_tokens
            self.output_tokens += cost.output_tokens


class Place(msgspec.Struct, frozen=True, order=True):
    """What a message is counted under."""

    tenant: str
    day: date
    user_id: str
    model: str
    session_key: str


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """``key``: a day, an ISO week, a user or a model; None for no user or no model."""

    key: str | None
    messages: int
    turns: int
    input_tokens: int
    output_tokens: int
    active_sessions: int


def count_messages(
    tenant: str,
    user_id: str | None,
    session_key: str,
    messages: Iterable[tuple[MessageId, bytes]],
    into: dict[Place, Counted],
) -> None:
    """Add the messages of a session by their ids' days, and answers by their model."""
    for identity, body in messages:
        cost = cost_of_body(body)
        day = id_time(identity).date()
        model = cost.model if cost and len(cost.model.encode()) <= ID_BYTES_MAX else ""
        place = Place(tenant, day, user_id or "", model, session_key)
        into.setdefault(place, Counted()).add(body)


def key_of(place: Place, by: By) -> str | None:
    match by:
        case "day":
            return place.day.isoformat()
        case "week":
            year, week, _ = place.day.isocalendar()
            return f"{year}-W{week:02d}"
        case "user":
            return place.user_id or None
        case "model":
            return place.model or None


def summed(places: Sequence[tuple[Place, Counted]], by: By) -> list[Item]:
    """Items by key, days and weeks in order, the others by their messages, most first."""
    sums: dict[str | None, Counted] = {}
    sessions: dict[str | None, set[tuple[str, str]]] = {}
    for place, counted in places:
        key = key_of(place, by)
        total = sums.setdefault(key, Counted())
        total.messages += counted.messages
        total.turns += counted.turns
        total.input_tokens += counted.input_tokens
        total.output_tokens += counted.output_tokens
        sessions.setdefault(key, set()).add((place.tenant, place.session_key))
    items = [
        Item(key=key, active_sessions=len(sessions[key]), **msgspec.structs.asdict(total))
        for key, total in sums.items()
    ]
    if by in {"day", "week"}:
        return sorted(items, key=lambda item: item.key or "")
    return sorted(items, key=lambda item: (-item.messages, item.key or ""))

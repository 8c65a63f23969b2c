"""Tool calls put together from the parts that a stream brings."""

from typing import Any, Final, cast

from service.domain.errors import ModelError

TOOL_CALLS_MAX: Final = 128

JOINED: Final = frozenset({"arguments", "input", "name"})
"""Fields whose parts follow one another; any other field comes whole."""

Part = dict[str, Any]


class ToolCallAssembly:
    """Joins parts by their index; what a server adds of its own is kept."""

    def __init__(self) -> None:
        self._calls: dict[int, Part] = {}
        self._places: dict[int | None, int] = {}

    def add(self, part: Part) -> Part:
        """The part with its index, also where the server left it out. Raises ModelError."""
        place = self._place_of(part)
        if place not in self._calls and len(self._calls) == TOOL_CALLS_MAX:
            raise ModelError(f"The model made more than {TOOL_CALLS_MAX} tool calls.")
        _join(self._calls.setdefault(place, {}), {k: v for k, v in part.items() if k != "index"})
        return part | {"index": place}

    def calls(self) -> list[Part] | None:
        """In the order of their indexes; None where there are none."""
        return [{"type": "function"} | call for _, call in sorted(self._calls.items())] or None

    def _place_of(self, part: Part) -> int:
        index: object = part.get("index")
        key = index if isinstance(index, int) else None
        place, named = self._places.get(key), part.get("id")
        if place is not None:
            known = self._calls[place].get("id")
            if not named or not known or named == known:
                return place
        # Some servers leave the index out, or give all calls the same; then the ids tell.
        free = max(self._calls, default=-1) + 1
        place = free if key is None or key in self._calls else key
        self._places[key] = place
        return place


def _join(whole: Part, part: Part) -> None:
    for name, value in part.items():
        had: object = whole.get(name)
        if isinstance(value, dict):
            inner = cast("Part", had) if isinstance(had, dict) else {}
            whole[name] = inner
            _join(inner, cast("Part", value))
        elif name in JOINED and isinstance(value, str) and isinstance(had, str):
            # Some servers repeat the name in every part.
            whole[name] = had if name == "name" and had == value else had + value
        elif value or name in JOINED:
            whole[name] = value

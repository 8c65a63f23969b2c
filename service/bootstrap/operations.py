"""Commands for operators: `ops dead-letters`, on the stores themselves."""

import os
import sys
from collections.abc import Sequence
from typing import Literal

import msgspec

from service.adapters.logs.configuration import configure
from service.adapters.logs.events import LogObserver
from service.api.dead_letters import LetterView, letter_view
from service.bootstrap.ambient import SystemClock
from service.bootstrap.stores import open_store
from service.core.dead_letters import DeadLetterDesk
from service.domain.errors import ChatMemoryError
from service.settings import Settings, SettingsError, missing_urls


class LettersLeft(ChatMemoryError):
    """Some of the letters that were asked for stay as they are."""


async def dead_letters(
    settings: Settings,
    action: Literal["list", "show", "retry", "drop"],
    letter_ids: Sequence[str],
    *,
    every: bool,
) -> None:
    """A JSON line on the standard output for each letter.

    Raises SettingsError, LettersLeft and the errors of the stores.
    """
    if settings.store != "hybrid":
        raise SettingsError("STORE: only the hybrid store has dead letters")
    missing_urls(settings)
    configure(settings.log_level, settings.log_format)
    observer = LogObserver()
    async with open_store(settings, clock=SystemClock(), observer=observer) as store:
        await store.check()
        if store.dead_letters is None:
            raise AssertionError("the hybrid store has them")
        await _act(store.dead_letters, action, letter_ids, every=every)


async def _act(
    desk: DeadLetterDesk, action: str, letter_ids: Sequence[str], *, every: bool
) -> None:
    by = f"cli {os.getuid()}"
    refused = 0
    if every or action == "list":
        letter_ids = [letter.id async for letter in desk.walk()]
    for letter_id in letter_ids:
        match action:
            case "retry":
                reason = await desk.retry(letter_id, by=by)
                refused += reason is not None
                outcome = "archived" if reason is None else "refused"
                _print({"id": letter_id, "outcome": outcome, "reason": reason})
            case "drop":
                await desk.drop(letter_id, by=by)
                _print({"id": letter_id, "outcome": "dropped", "reason": None})
            case _:
                _print(letter_view(await desk.find(letter_id)))
    if refused:
        raise LettersLeft(f"{refused} of {len(letter_ids)} letters were refused again.")


def _print(what: LetterView | dict[str, str | None]) -> None:
    sys.stdout.write(msgspec.json.encode(what).decode() + "\n")

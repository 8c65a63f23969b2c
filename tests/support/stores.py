"""The four stores as the contract suite sees them, on real servers, and what they are told."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec

from service.adapters.tokens.vocabularies import Vocabularies
from service.bootstrap.ambient import SystemClock
from service.bootstrap.flushers import open_flusher
from service.bootstrap.stores import Store, open_store
from service.core.prompting import Prompting
from service.core.recall import Recall
from service.domain.context import ContextOptions
from service.domain.messages import MessageBody, Role, encode_body
from service.domain.observations import Observation
from service.domain.sessions import SessionRef
from service.settings import Settings

Kind = TypeVar("Kind", bound=Observation)


class Recorder:
    """Observer that keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def observe(self, what: Observation) -> None:
        self.seen.append(what)

    def of(self, kind: type[Kind]) -> list[Kind]:
        return [what for what in self.seen if isinstance(what, kind)]


class Kept(msgspec.Struct, kw_only=True):
    """A store under test; ``flush`` brings everything accepted into the archive, if it has one."""

    name: str
    store: Store
    recorder: Recorder
    flush: Callable[[], Awaitable[None]]


def ref(session_id: str = "s", tenant: str = "default") -> SessionRef:
    return SessionRef(tenant, session_id)


def showing(last: int | None) -> ContextOptions:
    """A caller who asks for a window, or for all."""
    if last is None:
        return ContextOptions(strategy="buffer")
    return ContextOptions(strategy="window", last=last)


def said(content: str, role: Role = "user") -> bytes:
    return encode_body(MessageBody(role=role, content=content))


@asynccontextmanager
async def kept(settings: Settings) -> AsyncGenerator[Kept]:
    """The store of the settings, its flusher at hand but not running."""
    recorder, clock = Recorder(), SystemClock()
    async with open_store(settings, clock=clock, observer=recorder) as store:
        if settings.store != "hybrid":
            yield Kept(
                name=settings.store, store=store, recorder=recorder, flush=lambda: asyncio.sleep(0)
            )
            return
        async with open_flusher(settings, clock=clock, observer=recorder) as (flusher, ownership):

            async def flush() -> None:
                await ownership.renew()
                while await flusher.flush_once():
                    pass

            yield Kept(name="hybrid", store=store, recorder=recorder, flush=flush)
            await ownership.give_up()


def recall_of(store: Store) -> Recall:
    """Reading a store as the API does, with nobody who summarises."""

    async def no_profile(tenant: str, user_id: str) -> None:
        del tenant, user_id

    return Recall(
        store.transcripts,
        store.sessions,
        Prompting(Vocabularies()),
        model="gpt-4o",
        profile_text=no_profile,
        offer_summary=lambda ref, chosen, beside: None,
    )

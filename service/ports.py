"""What core needs from the outside, in the words of the domain.

The three store ports (Transcripts, Sessions, Turns) have four implementations: process memory,
PostgreSQL, and ``core.tiered`` over the hot ports (Redis) with or without an archive (PostgreSQL).
Every implementation raises HotUnavailable or ArchiveUnavailable where it cannot answer: a fault is
never an empty history. Every call is bounded in time by its adapter.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import date
from typing import Final, Literal, Protocol

import msgspec

from service.domain.context import ContextOptions, Need, plan
from service.domain.deltas import Place
from service.domain.errors import ContextTooLarge
from service.domain.ids import MessageId, TurnId
from service.domain.journal import (
    Acknowledgement,
    Batch,
    DeadLetter,
    Entry,
    Refused,
    ShardBacklog,
    Unreadable,
    Written,
)
from service.domain.messages import Message, Role
from service.domain.observations import Observation
from service.domain.profiles import Profile
from service.domain.sessions import Session, SessionDocument, SessionRef
from service.domain.statistics import By, Item
from service.domain.summaries import Summary
from service.domain.tokens import Tokenizer
from service.domain.turns import Answer, Delta, Prompt
from service.domain.words import WordQuery

Wanted = Literal["journaled", "fsynced", "archived"]
"""What a caller waits for: the hot memory and its journal (as durable as its append-only file),
that file on the disk (and on REDIS_WAIT_REPLICAS replicas), or a commit in PostgreSQL."""

Durability = Literal["volatile", "journaled", "fsynced", "archived"]
"""What an acknowledged message has reached: at least what was wanted, but for process memory,
which is volatile."""


class Clock(Protocol):
    def milliseconds(self) -> int:
        """Unix time. Never used for order: that comes from the ids."""
        ...

    def monotonic(self) -> float:
        """Seconds that only grow, for durations and deadlines."""
        ...


class Observer(Protocol):
    """Takes note of what happened; never raises, never blocks, never keeps message text."""

    def observe(self, what: Observation) -> None: ...


# --- the store, as the use cases see it -----------------------------------------------------------


class Once(msgspec.Struct, frozen=True, kw_only=True):
    """A client's promise that all calls with this key are one; kept for a day by default."""

    operation: str
    key: str
    fingerprint: str
    """Digest of the request: another one under the same key raises IdempotencyKeyReused."""


class Append(msgspec.Struct, frozen=True, kw_only=True):
    """Messages to accept, all or none; ``bodies`` were checked and encoded by domain.messages."""

    ref: SessionRef
    bodies: tuple[bytes, ...]
    user_id: str | None = None
    once: Once | None = None
    if_last_id: MessageId | msgspec.UnsetType | None = msgspec.UNSET
    """The newest message that the session must have, None for none; unset: whatever it has."""
    durability: Wanted = "journaled"


class Appended(msgspec.Struct, frozen=True, kw_only=True):
    ids: tuple[MessageId, ...]
    durability: Durability
    replayed: bool = False


class PageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a session's messages; ``before`` and ``after`` are exclusive."""

    limit: int
    descending: bool = False
    before: MessageId | None = None
    after: MessageId | None = None
    role: Role | None = None
    archive_only: bool = False
    """Only what the archive has, which may lag; the hot memory is not asked."""


class Recent(msgspec.Struct, frozen=True, kw_only=True):
    """The newest messages in order, and the system and developer messages older than those.

    ``messages`` has as many as were asked for that are not system or developer messages, and those
    in between; where tokens were asked for, at least so many, or all there are.
    """

    exists: bool
    user_id: str | None
    document: SessionDocument
    messages: tuple[Message, ...]
    pinned: tuple[Message, ...]
    ttl: int | None
    message_count: int | None = None
    """Messages of the session, where that is known without another question."""
    summary: Summary | None = None


class Transcripts(Protocol):
    """A session's messages. All readers see them in the order of their ids."""

    async def append(self, command: Append) -> Appended:
        """Accept messages at the end of the session, making it if needed.

        A named user who is not the session's raises SessionNotFound; a session without an owner
        gets this one. Raises BacklogFull past the queue's limits, IdempotencyKeyReused,
        PreconditionFailed, DurabilityUnavailable. Where the wanted durability is not reached in
        time, HotUnavailable or ArchiveUnavailable: the messages stand, and a repeat with the same
        key waits for it again.
        """
        ...

    async def page(self, ref: SessionRef, query: PageQuery) -> list[Message]:
        """At most ``limit`` messages in the asked order.

        Raises SessionNotFound, and InvalidValue for an archive that the store has not.
        """
        ...

    async def recent(self, ref: SessionRef, need: Need, *, archive_only: bool = False) -> Recent:
        """The newest messages, as many as needed; system and developer messages do not count.

        An unknown session does not exist. Raises ContextTooLarge where all of a very long one is
        needed; by tokens, BUFFER_MESSAGES_MAX messages are enough.
        """
        ...

    async def clear(self, ref: SessionRef) -> None:
        """Forget the messages accepted so far; cancels a running turn. Raises SessionNotFound."""
        ...


class SessionQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions of a tenant, of one user or of all, whose last activity is below ``before``."""

    tenant: str
    limit: int
    user_id: str | None = None
    before: MessageId | None = None


class SessionsPage(msgspec.Struct, frozen=True, kw_only=True):
    """``next_before`` is where the listing goes on; None at its end."""

    items: tuple[Session, ...]
    next_before: MessageId | None


class Create(msgspec.Struct, frozen=True, kw_only=True):
    """A session to make."""

    ref: SessionRef
    user_id: str | None = None
    document: SessionDocument = SessionDocument()
    once: Once | None = None


class Created(msgspec.Struct, frozen=True, kw_only=True):
    """The session was made with this id for its beginning; ``ttl`` as in Session."""

    born_id: MessageId
    ttl: int | None
    replayed: bool = False


class Sessions(Protocol):
    """The sessions of a tenant."""

    async def create(self, command: Create) -> Created:
        """Raises SessionExists, IdempotencyKeyReused."""
        ...

    async def get(self, ref: SessionRef, *, wait_seconds: float = 0) -> Session:
        """Raises SessionNotFound. Waits until all its messages are archived, or so long."""
        ...

    async def newest(self, query: SessionQuery) -> SessionsPage:
        """Newest activity first, ``limit`` at most, unflushed sessions included."""
        ...

    async def replace(self, ref: SessionRef, old: SessionDocument, new: SessionDocument) -> bool:
        """Put ``new`` in the place of ``old``; False when another document stands there by now.

        Raises SessionNotFound.
        """
        ...

    async def summarise(self, ref: SessionRef, old: MessageId | None, summary: Summary) -> bool:
        """Put a summary in the place of the one that reaches through ``old``; None for none.

        False, and nothing done, when another summary stands there by now, the messages were
        cleared away, or the new one does not reach further. Raises SessionNotFound.
        """
        ...

    async def delete(self, ref: SessionRef) -> None:
        """Forget the session and its messages; cancels a running turn. Raises SessionNotFound."""
        ...


class SearchQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Messages of a tenant, newest first, between two exclusive ids."""

    tenant: str
    limit: int
    words: WordQuery | None = None
    user_id: str | None = None
    session_id: str | None = None
    role: Role | None = None
    after: MessageId | None = None
    before: MessageId | None = None


class FoundMessage(msgspec.Struct, frozen=True, kw_only=True):
    session_id: str
    message: Message


class Search(Protocol):
    """Looking through all sessions of a tenant, in the archive."""

    async def find(self, query: SearchQuery) -> list[FoundMessage]:
        """At most ``limit``, newest first, whose lexemes are those of the query.

        Its runs are the caller's to look for. Raises ArchiveUnavailable.
        """
        ...

    async def archived_through(self) -> MessageId | None:
        """A bound: what was accepted up to it is found from now on, but for dead letters.

        None where nobody knows.
        """
        ...


class StatisticsQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Days from ``first``, inclusive, to ``end``, exclusive."""

    tenant: str
    by: By
    first: date
    end: date
    user_id: str | None = None


class Statistics(Protocol):
    async def items(self, query: StatisticsQuery) -> list[Item]:
        """At most ITEMS_MAX and one more, in the order of domain.statistics.summed."""
        ...


class Profiles(Protocol):
    """The profiles of a tenant's users."""

    async def get(self, tenant: str, user_id: str) -> Profile | None: ...

    async def replace(
        self, tenant: str, user_id: str, old: str | None, new: Profile | None
    ) -> bool:
        """Put ``new`` in the place of the version ``old``; None for no profile.

        False, and nothing done, when another one stands there by now.
        """
        ...


class ProfileCopy(msgspec.Struct, frozen=True, kw_only=True):
    """Held: ``profile`` is what the archive has. Marked: somebody is writing. Empty: unknown."""

    state: Literal["held", "marked", "empty"]
    profile: Profile | None = None


class HotProfiles(Protocol):
    """Copies of archived profiles."""

    async def get(self, tenant: str, user_id: str) -> ProfileCopy: ...

    async def fill(self, tenant: str, user_id: str, profile: Profile | None) -> None:
        """Only where the place is empty."""
        ...

    async def mark(self, tenant: str, user_id: str, token: str) -> None:
        """Before a write; the mark ends by itself, after any call of the archive has."""
        ...

    async def settle(self, tenant: str, user_id: str, token: str, profile: Profile | None) -> None:
        """After a write. Where one's own mark is gone, a mark is left instead of the profile."""
        ...


WAIT_LOOK_MILLISECONDS: Final = 2000
"""Longest time between two begins of a call that waits, before its place is another's."""
WAITERS_MAX: Final = 100
"""Calls that wait for one session; who comes later is refused."""


class Resumption(msgspec.Struct, frozen=True, kw_only=True):
    """Results of tools, with which a turn goes on in place of a new message."""

    calls_id: MessageId | None
    """The message whose calls they answer; None where the turn waits for none. Then only a repeated
    call is known, and the same results after a run with them that failed."""
    bodies: tuple[bytes, ...]
    fingerprint: str
    """Of the results: tells whether they are the same."""
    asked: bytes
    """What the turn goes on with; kept with its record."""


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """The start of a turn: the user's message and how much history its prompt needs."""

    ref: SessionRef
    turn_id: TurnId
    body: bytes
    """The user's message; of no use where the turn goes on."""
    resumes: Resumption | None = None
    options: ContextOptions = ContextOptions()
    """How much history the prompt needs; what is open here, the session's own context decides."""
    cost: int = 0
    """Tokens of the prompt without anything of the session's; above the budget, if the context has
    one, the turn is refused and its message not stored."""
    user_id: str | None
    once: Once | None
    lease_token: str
    durability: Wanted = "journaled"
    """What the turn's end will wait for; what cannot be had is refused at its begin."""
    waits: bool = False
    """Keep a place among those that wait for a busy session; the caller begins again with the same
    lease token, more often than every WAIT_LOOK_MILLISECONDS."""


def needed(command: Begin, document: SessionDocument) -> Need:
    """How much history a turn's prompt needs, once the session's own context is known."""
    return plan(command.options.over(document.context)).need


def check_cost(command: Begin, document: SessionDocument) -> None:
    """Raises ContextTooLarge where the new message alone is over the budget."""
    budget = plan(command.options.over(document.context)).max_tokens
    if budget is not None and command.cost > budget:
        raise ContextTooLarge.over(command.cost - budget, budget)


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """The turn is ours: its user message is stored and the session's lease is taken."""

    user_message_id: MessageId
    turn_id: TurnId
    """That of its first run, where it is taken up again."""
    history: Recent
    """What was there before the user's message."""


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """The call ended before: its stored result and the id its answer got."""

    result: bytes
    message_id: MessageId | None


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a turn. ``result`` is what a repeated call gets, without the answer's id."""

    ref: SessionRef
    turn_id: TurnId
    lease_token: str
    body: bytes | None
    """The answer to store; None when nothing was said."""
    result: bytes
    once: Once | None
    durability: Wanted = "journaled"
    asked: bytes = b""
    """What the turn can go on with: it has made calls, and waits for the results of tools."""
    resumed: bool = False
    """It went on with such results before."""


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    message_id: MessageId | None
    outcome: Literal["stored", "cancelled", "lost"]
    """Cancelled: the session was cleared meanwhile. Lost: another owner has the lease.
    In both cases nothing was written."""


LeaseState = Literal["held", "cancelled", "lost"]
"""Cancelled: held, and somebody asks the turn to end."""


class TurnRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How a turn stands. An ended one has its result, and the id that its answer got."""

    state: Literal["running", "ended", "cancelled", "interrupted"]
    """Cancelled: by a clear. Interrupted: its process died, or lost the session."""
    user_message_id: MessageId
    result: bytes = b""
    message_id: MessageId | None = None
    cleared: bool = False
    """What was said in it was cleared away since: nobody is shown its answer."""
    asked: bytes = b""
    """What it goes on with, or went on with; empty where it never made calls, or is not wanted."""


class Stops(Protocol):
    """Tells the turns of this process when to look whether they are to end: by ``Turns.renew``.

    A turn that is told may have to end, or not; what is told may be lost with a connection. So the
    word is that of the renewal, and a turn that is told nothing renews its lease all the same.
    """

    @property
    def listening(self) -> bool:
        """Whether a turn is told as soon as it may be to end, whichever process wants that.

        Where not, only looking often tells.
        """
        ...

    @property
    def changes(self) -> int:
        """Rises whenever stops may have been missed."""
        ...

    def told(
        self, lease_token: str, look: Callable[[], None], *, since: int
    ) -> AbstractContextManager[None]:
        """Call ``look`` whenever that turn is to look, and when ``listening`` changes.

        At once where it was asked to end since its begin, or may have been: ``since`` is what
        ``changes`` was before that.
        """
        ...


class Turns(Protocol):
    """One turn at a time per session, held by a lease that a dead process loses."""

    @property
    def stops(self) -> Stops: ...

    async def begin(self, command: Begin) -> Begun | Replayed:
        """Take the session and store the user's message, in one step.

        A repeated key returns the finished turn, raises RequestRunning beside a running one, and
        takes a failed or interrupted one up again without a second user message. Raises
        SessionBusy (also beside others that wait, first come first served), SessionNotFound
        (another user's), BacklogFull, IdempotencyKeyReused, ContextTooLarge.

        With results of tools the turn goes on under its own id, before those that wait: they are
        stored behind the calls, once. Raises TurnNotFound, and TurnNotWaiting where the calls are
        not the turn's last, were answered, or anything but system and developer messages was said
        since.
        """
        ...

    async def renew(self, ref: SessionRef, lease_token: str) -> LeaseState:
        """Keep the lease, if it is still ours."""
        ...

    async def finish(self, command: Finish) -> Finished:
        """Store the answer and the result and free the lease, in one step, if it is still ours."""
        ...

    async def fail(self, command: Finish) -> Finished:
        """As ``finish``, but a repeated key runs the turn again: the user's message stays."""
        ...

    async def find(
        self, ref: SessionRef, turn_id: TurnId, *, cancel: bool = False, asked: bool = False
    ) -> TurnRecord | None:
        """How a turn stands; a running one is asked to end where so wanted. None: not known.

        ``asked``: also what it goes on with.
        """
        ...


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """Some of a running turn's answer, as a reader elsewhere finds it."""

    mark: str
    """To read on after it."""
    start: Place
    delta: Delta


class Pieces(Protocol):
    """What a running turn has said so far, short-lived, for readers in other processes."""

    async def publish(
        self, ref: SessionRef, turn_id: TurnId, lease_token: str, start: Place, delta: Delta
    ) -> LeaseState:
        """Nothing is published by who has no lease."""
        ...

    async def read(self, ref: SessionRef, turn_id: TurnId, after: str) -> list[Piece]:
        """In order, after a mark or from the first; none of a turn that has ended."""
        ...


# --- imports: the past of a session, straight into the archive ------------------------------------


class Import(msgspec.Struct, frozen=True, kw_only=True):
    """Messages to put into an empty session, in one transaction."""

    ref: SessionRef
    user_id: str | None = None
    key: str | None = None
    """The client's Idempotency-Key."""


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    imported: int
    first_id: MessageId
    last_id: MessageId
    fingerprint: str = ""
    """Digest of the body, of a call that was made before."""
    replayed: bool = False


class ImportedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A message that was checked and encoded, under the id that it gets."""

    id: MessageId
    role: Role
    body: bytes


class ImportRun(Protocol):
    """An import that has begun: nothing is seen of it before it is finished."""

    @property
    def above(self) -> MessageId:
        """Ids must be above it."""
        ...

    @property
    def now_milliseconds(self) -> int:
        """The import's start, by the clock that gives the session's ids."""
        ...

    @property
    def latest_milliseconds(self) -> int:
        """Highest time in an id: below that of whatever is said beside the import."""
        ...

    @property
    def done(self) -> Imported | None:
        """What an earlier call with the same key did; then there is nothing to store."""
        ...

    async def store(self, rows: Sequence[ImportedRow]) -> None:
        """The next messages, with strictly increasing ids."""
        ...

    async def finish(self, imported: Imported, fingerprint: str) -> None:
        """Raises PreconditionFailed where something was said or cleared below these messages."""
        ...


class Imports(Protocol):
    def open(self, command: Import) -> AbstractAsyncContextManager[ImportRun]:
        """A transaction that is committed when the context ends, and undone by any error.

        Raises InvalidValue for a store without an archive, SessionNotFound for another user's
        session, PreconditionFailed for one with messages, SessionBusy or RequestRunning beside
        another import of it, Overloaded beside too many of them.
        """
        ...


class HotLook(msgspec.Struct, frozen=True, kw_only=True):
    """How a session stands in the hot memory."""

    state: "HotState"
    now_milliseconds: int
    """By the clock that gives ids: what is accepted from now on is not below it."""


class HotHealing(Protocol):
    async def look(self, ref: SessionRef) -> HotLook: ...

    async def heal(self, ref: SessionRef, *, settled: MessageId) -> None:
        """Have the next reader ask the archive first; nothing that is unflushed is lost.

        Nothing is asked where the session was cleared or deleted above ``settled``: the archive
        does not know that yet. Ends a reservation.
        """
        ...

    async def reserve(
        self, ref: SessionRef, user_id: str | None, *, settled: MessageId, seconds: float
    ) -> bool:
        """Before a commit that changes the archive: let nobody learn for so long how it was.

        False where the session is another user's by now. ``settled`` is above what was known when
        the change began.
        """
        ...


# --- forgetting users -----------------------------------------------------------------------------


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a user was forgotten, by kind."""

    hot_sessions: int = 0
    journal_entries: int = 0
    """Accepted and not yet known to be archived when they were dropped."""
    archive_sessions: int = 0
    archive_messages: int = 0
    profiles: int = 0
    idempotency_records: int = 0
    dead_letters: int = 0


class Erasure(Protocol):
    """Forgetting a user for good, in all tiers of a store."""

    async def erase(self, tenant: str, user_id: str) -> Erased | None:
        """All sessions of the user, and the user's name where things are counted.

        When it returns, nothing of them is left and no replay brings anything back; what is said
        meanwhile makes a new session. None where nothing is known of the user. After any error a
        repeated call goes on. Raises BacklogFull, Overloaded.
        """
        ...


class UserSessions(Protocol):
    """Finding a user's sessions."""

    def walk(self, tenant: str, user_id: str) -> AsyncGenerator[SessionRef]:
        """Each session that is the user's all along, once, also where it is used meanwhile."""
        ...


# --- the hot memory and its journal, as core.tiered and the flusher see them ---------------------


class HotState(msgspec.Struct, frozen=True, kw_only=True):
    """What the hot memory holds of a session at one instant."""

    epoch: str
    """Changes whenever the hot state was lost or expired and began anew."""
    known: bool
    """The archive's part (owner, document, existence) has been taken in."""
    exists: bool
    user_id: str | None
    document: bytes
    born_id: MessageId | None
    floor: MessageId | None
    """Every message with an id at or above it is in ``messages``' list; ZERO_ID: every one there
    is; None: nothing is held."""
    cleared_through: MessageId
    active_id: MessageId | None
    last_id: MessageId | None
    unflushed: int
    pinned_complete: bool
    held: int
    """Messages in the hot list; ``messages`` may be the newest part of them."""
    ttl: int | None
    pinned: tuple[bytes, ...]
    messages: tuple[bytes, ...]
    summary: bytes = b""
    letter: MessageId | None = None
    """The oldest message that is a dead letter; all from it on are in ``messages``' list."""
    importing: str = ""
    """Names the import that was about to be committed; '' for none."""


class ArchivedSession(msgspec.Struct, frozen=True, kw_only=True):
    """A session's row in the archive."""

    user_id: str | None
    document: bytes
    born_id: MessageId
    active_id: MessageId
    message_count: int
    last_id: MessageId | None
    archived_through: MessageId | None
    cleared_through: MessageId
    deleted: bool = False
    """A tombstone: the session is gone, and what it says of the past still holds."""
    summary: bytes = b""


class Filling(msgspec.Struct, frozen=True, kw_only=True):
    """Archived state to take into the hot memory, if it is still as ``seen``."""

    ref: SessionRef
    seen: HotState
    session: ArchivedSession | None
    """Its row, also a tombstone; None where it never was."""
    floor: MessageId | None
    """Lowest id covered by ``messages`` and the hot list together; None: do not touch the list."""
    messages: tuple[bytes, ...] = ()
    pinned: tuple[bytes, ...] | None = None
    """System and developer messages below the floor; None: not looked up."""


class Filled(msgspec.Struct, frozen=True, kw_only=True):
    """The session is hot, for ``ttl`` seconds; None where it does not exist."""

    ttl: int | None


class Cold(msgspec.Struct, frozen=True, kw_only=True):
    """The archive must be asked first; nothing was written."""

    state: HotState


class HotTranscripts(Protocol):
    """Messages in Redis. A call whose reply was lost is repeated and takes effect once."""

    async def append(self, command: Append) -> Appended | Cold: ...

    async def read(self, ref: SessionRef, *, last: int | None) -> HotState:
        """At least the newest ``last`` messages that are not pinned (None: all held).

        Slides the lifetime.
        """
        ...

    async def fill(self, filling: Filling) -> Filled | None:
        """Compare and set: None, and nothing done, when the state is no longer as seen."""
        ...

    async def clear(self, ref: SessionRef) -> bool | Cold:
        """False when the session does not exist."""
        ...

    async def import_ended(self, ref: SessionRef, importing: str) -> None:
        """An import whose commit was waited for is over, and its process did not say so."""
        ...


class HotSessions(Protocol):
    """Session documents in Redis, journaled like messages."""

    async def create(self, command: Create) -> Created | Cold | None:
        """None when the session exists."""
        ...

    async def replace(
        self, ref: SessionRef, old: SessionDocument, new: SessionDocument
    ) -> Literal["replaced", "changed", "missing"] | Cold: ...

    async def summarise(
        self, ref: SessionRef, old: MessageId | None, summary: Summary
    ) -> Literal["replaced", "changed", "missing"] | Cold: ...

    async def delete(self, ref: SessionRef) -> bool | Cold: ...

    async def unarchived(self, tenant: str) -> Sequence[str]:
        """Ids of all sessions that the archive may not have as they are.

        Raises Overloaded past a bound that only a long absence of the archive reaches.
        """
        ...

    async def remaining(self, refs: Sequence[SessionRef]) -> list[int | None]:
        """Seconds that each session stays hot; None where it is not. Slides nothing."""
        ...


class HotBegun(msgspec.Struct, frozen=True, kw_only=True):
    """The turn is ours; ``state`` is how the session stood before its message."""

    user_message_id: MessageId
    turn_id: TurnId
    state: HotState


class HotTurns(Protocol):
    @property
    def stops(self) -> Stops: ...

    async def begin(self, command: Begin, *, incomplete_ok: bool) -> HotBegun | Replayed | Cold:
        """Cold also when the hot list does not hold what the prompt needs.

        With ``incomplete_ok`` that does not matter, and ``state`` holds what is hot of it.
        """
        ...

    async def renew(self, ref: SessionRef, lease_token: str) -> LeaseState: ...
    async def find(
        self, ref: SessionRef, turn_id: TurnId, *, cancel: bool = False, asked: bool = False
    ) -> TurnRecord | None: ...
    async def finish(self, command: Finish) -> Finished: ...
    async def fail(self, command: Finish) -> Finished: ...


class HotDeletion(msgspec.Struct, frozen=True, kw_only=True):
    """A deletion that the archive may not have got."""

    ref: SessionRef
    id: MessageId
    shard: int


class HotErased(msgspec.Struct, frozen=True, kw_only=True):
    """A session that is erased in the hot memory."""

    deletion: HotDeletion
    entries: int
    """Journal entries of the session that the archive had not got."""
    records: int
    hot: bool
    dead_letters: int = 0


class HotOfUser(msgspec.Struct, frozen=True, kw_only=True):
    """What the hot memory knows of a user's sessions."""

    refs: tuple[SessionRef, ...]
    """Those that the archive may not have as they are."""
    deletions: tuple[HotDeletion, ...]
    """The newest of each shard and of whomever: whose they were, nobody knows any more."""


class HotErasure(Protocol):
    """Forgetting a user's sessions in the hot memory."""

    async def find(self, tenant: str, user_id: str) -> HotOfUser: ...

    async def erase(self, ref: SessionRef, user_id: str) -> HotErased | HotDeletion | None:
        """As a deletion, journaled, and the session's records of calls with it.

        The deletion alone where another call has deleted the session, also where it is another
        user's by now; None where it is not this user's at all. Raises BacklogFull.
        """
        ...


class Journal(Protocol):
    """The write-behind queue, in order per shard: what the archive has not got yet.

    Exactly that, but for the dead letters.
    """

    async def backlog(self, shards: Sequence[int]) -> list[ShardBacklog]: ...

    async def oldest(self, refs: Sequence[SessionRef]) -> list[tuple[int, int] | None]:
        """Milliseconds and counter of the oldest entry in each session's shard; None: empty."""
        ...

    async def head(self, wanted: Sequence[tuple[int, int]]) -> list[list[Entry | Unreadable]]:
        """The oldest entries of each (shard, count), in order.

        Up to one of a kind that this release does not know: that waits for another release.
        """
        ...

    async def acknowledge(self, shard: int, acknowledgement: Acknowledgement) -> bool:
        """Drop entries that are committed, if they are still the oldest of the shard.

        False, and nothing done, when they are not: another flusher was here.
        """
        ...


class DeadLetters(Protocol):
    """Entries that the archive refused for their content, by shard; a session's count as unflushed.

    A clear, a deletion or an erasure takes them away with what it forgets.
    """

    async def bury(self, shard: int, entry: Entry | Unreadable, reason: str) -> Refused:
        """Move the oldest entry of a shard's journal here, in one step."""
        ...

    async def among(self, ref: SessionRef, first: MessageId, last: MessageId) -> list[MessageId]:
        """Ids of a session's messages that are letters, from ``first`` to ``last``."""
        ...

    async def page(self, *, after: MessageId | None, limit: int) -> list[DeadLetter]:
        """By id, in all shards."""
        ...

    async def find(self, letter_id: MessageId) -> DeadLetter | None: ...

    async def release(self, letter: DeadLetter, how: Literal["archived", "dropped"]) -> bool:
        """The letter is one no more; a dropped message is gone. False: it was none by now."""
        ...

    async def refuse_again(self, letter: DeadLetter, reason: str) -> int:
        """Count an attempt; how many there were."""
        ...


class ShardLeases(Protocol):
    """Which flusher works on which shard. A lease never protects data, only effort."""

    async def live_owners(self, owner: str) -> int:
        """Announce ``owner`` for another lease time and count those who did so."""
        ...

    async def take(self, shard: int, owner: str) -> bool:
        """Take a free shard or renew one's own; False when another has it."""
        ...

    async def release(self, shard: int, owner: str) -> None: ...

    async def leave(self, owner: str) -> None:
        """Take back the announcement, so that the others take over at once."""
        ...


class Archive(Protocol):
    """What PostgreSQL holds, read only."""

    async def session(self, ref: SessionRef) -> ArchivedSession | None:
        """The session's row, also that of a deleted one."""
        ...

    async def page(self, ref: SessionRef, query: PageQuery, *, above: MessageId) -> list[bytes]:
        """JSON texts of messages with ids above ``above``, in the asked order."""
        ...

    async def is_importing(self, ref: SessionRef) -> bool:
        """Whether an import into the session is open: it may be committed at any moment."""
        ...

    async def pinned(self, ref: SessionRef, *, above: MessageId, below: MessageId) -> list[bytes]:
        """System and developer messages between two exclusive ids, oldest first."""
        ...

    async def newest_sessions(self, query: SessionQuery) -> list[tuple[str, ArchivedSession]]: ...

    async def sessions_of(
        self, tenant: str, user_id: str, *, after: str | None, limit: int
    ) -> list[tuple[str, str]]:
        """A user's sessions: places and ids in the order of fixed places, after one of these."""
        ...


class ArchiveErased(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that are gone."""

    sessions: int = 0
    messages: int = 0
    records: int = 0


class ArchiveErasure(Protocol):
    """Forgetting a user in PostgreSQL."""

    async def erase(self, ref: SessionRef, through: MessageId) -> ArchiveErased:
        """Apply the deletion with this id before the journal brings it; repeated, nothing."""
        ...

    async def standing(self, ref: SessionRef) -> ArchiveErased:
        """What there is to erase of a session; nothing of one that is deleted."""
        ...

    async def forget_user(self, tenant: str, user_id: str) -> bool:
        """Count what the user did as nobody's; whether anything was counted."""
        ...


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """The messages of a session up to ``through``, which are kept no longer."""

    ref: SessionRef
    through: MessageId


class ArchiveRetention(Protocol):
    """Dropping what is kept no longer from PostgreSQL, in short transactions."""

    async def next_tenant(self, after: str) -> str | None:
        """The next tenant with sessions, in a fixed order."""
        ...

    async def old(self, tenant: str, *, before: MessageId, limit: int) -> list[Cut]:
        """By session, the oldest messages, ``limit`` at most."""
        ...

    async def cut(self, tenant: str, cuts: Sequence[Cut]) -> int:
        """Delete them; how many there were. No replay brings them back."""
        ...

    async def idle(
        self, tenant: str, *, before: MessageId, after: MessageId, limit: int
    ) -> list[tuple[SessionRef, MessageId]]:
        """Sessions without messages whose last activity is between the two, oldest first."""
        ...

    def still_idle(
        self, tenant: str, refs: Sequence[SessionRef], *, before: MessageId
    ) -> AbstractAsyncContextManager[Sequence[SessionRef]]:
        """Those that are idle still; until the context ends nothing of them is archived.

        Neither what is imported nor what is said.
        """
        ...

    async def end(self, tenant: str, refs: Sequence[SessionRef], *, before: MessageId) -> int:
        """Delete those that are still idle; how many."""
        ...


class HotRetention(Protocol):
    """Dropping what is kept no longer from the hot memory."""

    async def cut(self, cuts: Sequence[Cut]) -> None:
        """Of sessions that are hot; never what the archive has not got."""
        ...

    async def end(self, refs: Sequence[SessionRef], *, before: MessageId) -> int:
        """Delete those that are idle here too, journaled; how many. Raises BacklogFull."""
        ...


class ArchiveWriter(Protocol):
    async def write(self, batch: Batch) -> Written:
        """Commit entries in one transaction; a repeated or overtaken batch changes nothing.

        Raises ArchiveRefused where PostgreSQL refuses it for its content, and for nothing else.
        """
        ...


# --- the model ------------------------------------------------------------------------------------


class Model(Protocol):
    async def answer(self, prompt: Prompt, *, deadline_seconds: float) -> Answer:
        """Ask the model once, within the time, retries included.

        Raises ModelError, ModelUnavailable, ModelTimeout, ContextTooLarge.
        """
        ...


class StreamingModel(Model, Protocol):
    """A model that tells its answer piece by piece too."""

    def stream(self, prompt: Prompt, *, deadline_seconds: float) -> AsyncGenerator[Delta | Answer]:
        """Deltas as they come, and last of all the whole answer.

        Errors as of ``answer``. Attempts are repeated only before the first delta; an error after
        it means that what was told is all there is.
        """
        ...


class Tokenizers(Protocol):
    async def of(self, model: str) -> Tokenizer:
        """The tokenizer of a model's vocabulary; of the default one for an unknown model."""
        ...


# --- health ---------------------------------------------------------------------------------------


class Probe(Protocol):
    """Asks one dependency whether it works, bounded in time."""

    @property
    def name(self) -> str: ...

    async def problem(self) -> str | None:
        """A sentence without secrets when it does not work, else None."""
        ...

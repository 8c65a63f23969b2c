"""The service with one mistake planted: ``CHAOS_BUG=name python -m tests.chaos.planted serve``.

Mistakes that this field really makes. Each is a change of a script, of a statement or of a method,
made before the service starts; the service knows nothing of it.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from service.adapters.postgres import archive, writer
from service.adapters.redis import client
from service.domain.errors import ChatMemoryError, HotUnavailable
from service.domain.journal import Acknowledgement

BUGS: dict[str, Callable[[], None]] = {}


def bug(plant: Callable[[], None]) -> Callable[[], None]:
    BUGS[plant.__name__] = plant
    return plant


def change_script(script: str, old: str, new: str) -> None:
    """Scripts are read where their adapters are imported: this comes first."""
    read = client.Script.__init__

    def changed(self: client.Script, name: str, *, of_session: bool, lets_go: bool = False) -> None:
        read(self, name, of_session=of_session, lets_go=lets_go)
        if script in {name, "session" if of_session else ""}:
            self.text = swapped(self.text, old, new)
            self.digest = client.hashlib.sha1(self.text.encode()).hexdigest()

    client.Script.__init__ = changed


def swapped(text: str, old: str, new: str) -> str:
    """A bug that no longer finds its place is no bug, and must not pass for one."""
    if old not in text:
        raise AssertionError(f"nothing to plant in: {old}")
    return text.replace(old, new)


@bug
def trim_before_commit() -> None:
    from service.core.carrying import Carrier  # noqa: PLC0415  # After the scripts.

    commit = Carrier.commit

    async def trimmed_first(self: Any, entries: Sequence[Any]) -> None:
        shards: dict[int, list[Any]] = {}
        for entry in entries:
            shards.setdefault(self._journal._keys.shard(entry.ref), []).append(entry)
        for shard, run in shards.items():
            await self._journal.acknowledge(shard, Acknowledgement(entries=tuple(run)))
        await commit(self, entries)

    Carrier.commit = trimmed_first


@bug
def pop_before_insert() -> None:
    from service.adapters.redis.journal import RedisJournal  # noqa: PLC0415  # After the scripts.

    head = RedisJournal.head

    async def popped(self: Any, wanted: Any) -> Any:
        runs = await head(self, wanted)
        for (shard, _), run in zip(wanted, runs, strict=True):
            if run:
                positions = [entry.position for entry in run]
                await self._door.command("XDEL", self._keys.journal(shard), *positions)
        return runs

    RedisJournal.head = popped


@bug
def archive_error_swallowed() -> None:
    from service.core.carrying import Carrier  # noqa: PLC0415  # After the scripts.

    commit = Carrier.commit

    async def swallowed(self: Any, entries: Sequence[Any]) -> None:
        try:
            await commit(self, entries)
        except ChatMemoryError:
            return

    Carrier.commit = swallowed


@bug
def trim_without_a_look() -> None:
    change_script(
        "acknowledge",
        "if #first == 0 or first[1][1] ~= ARGV[1] then return 0 end\n\n"
        "redis.call('XTRIM', KEYS[1], 'MINID', '=', ARGV[2])",
        "local count = 0\n"
        "for place = 7, #ARGV, 2 do count = count + tonumber(ARGV[place]) end\n"
        "local left = math.max(0, redis.call('XLEN', KEYS[1]) - count)\n"
        "redis.call('XTRIM', KEYS[1], 'MAXLEN', '=', left)",
    )


@bug
def lifetime_while_unflushed() -> None:
    change_script("session", "if tonumber(head.unflushed) > 0 then", "if false then")


@bug
def repeat_without_a_record() -> None:
    change_script("append", "local record = redis.call('GET', KEYS[8])", "local record = false")


@bug
def order_by_time() -> None:
    # To a quarter of a second, as time columns are filled by clocks of processes.
    by_time = "ORDER BY substr(id::text, 1, 11), md5(body::text)"
    for name in ("PAGE_ASCENDING", "PAGE_DESCENDING"):
        setattr(archive, name, swapped(getattr(archive, name), "ORDER BY id", by_time))


@bug
def redis_error_swallowed() -> None:
    from service.core.recall import History, MessagesPage, Recall  # noqa: PLC0415  # As above.

    page, history = Recall.page, Recall.history

    async def empty_page(self: Any, *words: Any, **options: Any) -> MessagesPage:
        try:
            return await page(self, *words, **options)
        except HotUnavailable:
            return MessagesPage(items=(), next_cursor=None)

    async def empty_history(self: Any, *words: Any, **options: Any) -> History:
        try:
            return await history(self, *words, **options)
        except HotUnavailable:
            return History(user_id=None, messages=(), ttl=None, next_cursor=None)

    Recall.page, Recall.history = empty_page, empty_history


@bug
def conflicts_counted_as_rows() -> None:
    insert = writer._insert

    async def counted(connection: Any, changes: Any, words: Any) -> dict[str, set[str]]:
        await insert(connection, changes, words)
        return {key: {entry.id for entry in change.messages} for key, change in changes.items()}

    writer._insert = counted


@bug
def clear_outside_the_journal() -> None:
    change_script(
        "clear",
        "forget_messages(accept('c', '', ARGV[9]))",
        "forget_messages(identity(milliseconds() .. '-0', tonumber(ARGV[9])))",
    )


@bug
def write_after_a_lost_lease() -> None:
    change_script("finish", "if head.lease ~= ARGV[9] then", "if false then")
    change_script("renew", "if head.lease ~= ARGV[9] then", "if false then")


@bug
def lease_deleted_by_another() -> None:
    """A lock released by a bare DEL, and asked for by whether it is there."""
    change_script(
        "finish",
        "if head.lease ~= ARGV[9] then",
        "if head.lease and head.lease ~= ARGV[9] then\n  set('lease', '')\n  save()",
    )
    change_script("renew", "if head.lease ~= ARGV[9] then", "if false then")


@bug
def reads_of_the_archive_alone() -> None:
    from service.core.tiered.transcripts import TieredTranscripts  # noqa: PLC0415  # As above.

    page, recent = TieredTranscripts.page, TieredTranscripts.recent

    async def late_page(self: Any, ref: Any, query: Any) -> Any:
        return await page(self, ref, msgspec.structs.replace(query, archive_only=True))

    async def late_recent(self: Any, ref: Any, need: Any, **_: Any) -> Any:
        return await recent(self, ref, need, archive_only=True)

    TieredTranscripts.page, TieredTranscripts.recent = late_page, late_recent


def main() -> int:
    if name := os.environ.get("CHAOS_BUG"):
        BUGS[name]()
    from service.__main__ import main as service  # noqa: PLC0415  # After the bug is planted.

    return service()


if __name__ == "__main__":
    sys.exit(main())

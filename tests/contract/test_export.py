"""Exporting a user, over all four stores."""

import tracemalloc

import pytest

from service.bootstrap.ambient import SystemClock
from service.core.exporting import EndPiece, Exporting, MessagesPiece, UserPiece
from service.domain.errors import InvalidValue, UserNotFound
from service.domain.sessions import Session
from service.ports import Append
from tests.support.stores import ref, said

TENANT = "default"
MIB = 1024 * 1024


async def append(memory, session, *contents, user=None):
    bodies = tuple(said(content) for content in contents)
    command = Append(ref=ref(session), bodies=bodies, user_id=user)
    return await memory.store.transcripts.append(command)


def exporting(memory) -> Exporting:
    store = memory.store
    return Exporting(
        store.user_sessions, store.sessions, store.transcripts, store.profiles.get, SystemClock()
    )


async def exported(memory, user="ada"):
    """The first and the last piece, and the contents of each session in order."""
    pieces = [piece async for piece in await exporting(memory).export(TENANT, user)]
    found: dict[str, list[object]] = {}
    for piece in pieces[1:-1]:
        if isinstance(piece, Session):
            assert piece.id not in found
            found[piece.id] = []
        elif isinstance(piece, MessagesPiece):
            found[piece.session_id] += [message.content for message in piece.messages]
    return pieces[0], pieces[-1], found


@pytest.mark.parametrize("flushed", [0, 60, 130])
async def test_an_export_has_everything_in_order(memory, flushed):
    for n in range(130):
        await append(memory, "long", str(n), user="ada")
        if n + 1 == flushed:
            await append(memory, "cold", "x", user="ada")
            await memory.flush()
    await append(memory, "other", "y", user="eve")
    await append(memory, "nobody", "z")

    first, last, found = await exported(memory)
    expected = {"long": [str(n) for n in range(130)]}
    if flushed:
        expected["cold"] = ["x"]
    assert found == expected
    assert isinstance(first, UserPiece)
    assert first.user_id == "ada"
    assert last == EndPiece(sessions=len(expected), messages=130 + bool(flushed))


async def test_of_an_unknown_user_nothing_is_exported(memory):
    await append(memory, "s", "a", user="ada")
    with pytest.raises(UserNotFound):
        await exporting(memory).export(TENANT, "eve")
    with pytest.raises(UserNotFound):
        await exporting(memory).export("other", "ada")
    with pytest.raises(InvalidValue, match="user_id"):
        await exporting(memory).export(TENANT, "")


async def test_a_session_that_is_used_meanwhile_is_exported_once(memory):
    for n in range(30):
        await append(memory, f"s{n:02}", "a", user="ada")
    await memory.flush()

    sessions = []
    async for piece in await exporting(memory).export(TENANT, "ada"):
        if isinstance(piece, Session):
            sessions.append(piece.id)
            if len(sessions) == 5:
                for n in range(30):
                    await append(memory, f"s{n:02}", "b")
                await memory.flush()
    assert sorted(sessions) == [f"s{n:02}" for n in range(30)]


async def test_what_is_said_in_a_session_made_anew_is_not_exported(memory):
    await append(memory, "s", *(str(n) for n in range(120)), user="ada")
    contents = []
    async for piece in await exporting(memory).export(TENANT, "ada"):
        if isinstance(piece, MessagesPiece):
            if not contents:
                await memory.store.sessions.delete(ref("s"))
                await append(memory, "s", *(f"eve {n}" for n in range(120)), user="eve")
            contents += [message.content for message in piece.messages]
    assert contents == [str(n) for n in range(50)]


# The others hold at most 10,000 messages of a session, and in memory anyway.
@pytest.mark.parametrize("store_settings", ["postgres", "hybrid"], indirect=True)
async def test_a_large_export_needs_little_memory(memory):
    for _ in range(20):
        await append(memory, "s", *("x" * 500 for _ in range(1000)), user="ada")
        await memory.flush()

    count, last = 0, None
    tracemalloc.start()
    try:
        async for piece in await exporting(memory).export(TENANT, "ada"):
            last = piece
            count += len(piece.messages) if isinstance(piece, MessagesPiece) else 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (count, last) == (20_000, EndPiece(sessions=1, messages=20_000))
    # All of it would be ten times as much.
    assert peak < 2 * MIB

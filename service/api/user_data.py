"""What a person may ask for: all that is kept of them, and to be forgotten."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Final

import msgspec
from litestar import Controller, delete, get
from litestar.params import FromPath
from litestar.response import Stream

from service.api.documentation import READ_PROBLEMS, problems
from service.api.middleware import STREAM
from service.api.requests import path_id
from service.api.use_cases import Injected
from service.api.views import view_message, view_session
from service.core.exporting import EndPiece, MessagesPiece, Piece, UserPiece
from service.domain.ids import id_time
from service.domain.profiles import Profile, Topics
from service.domain.sessions import DEFAULT_TENANT, Session

LINES_MEDIA_TYPE: Final = "application/x-ndjson"


class ErasedView(msgspec.Struct, frozen=True, kw_only=True):
    """How much was forgotten, by kind."""

    hot_sessions: int
    journal_entries: int
    archive_sessions: int
    archive_messages: int
    profiles: int
    idempotency_records: int
    dead_letters: int


class ErasureView(msgspec.Struct, frozen=True, kw_only=True):
    erased: ErasedView
    completed_at: datetime


class ProfileLine(msgspec.Struct, frozen=True, kw_only=True):
    topics: Topics
    updated_at: datetime


class UserData(Controller):
    """A user's right to take away and to be forgotten."""

    tags = ["Users"]  # noqa: RUF012  # Litestar's convention.

    @delete(
        "/v1/users/{user_id:str}",
        operation_id="erase_user",
        summary="Forget a user",
        status_code=200,
        responses=problems("backlog_full", *READ_PROBLEMS),
    )
    async def erase(self, use_cases: Injected, user_id: FromPath[str]) -> ErasureView:
        """All sessions and the profile, for good and in every tier, when it answers.

        A running turn is cancelled. After a 503 some of it may be done: a repeated request goes on.
        What is said meanwhile makes a new session.
        """
        done = await use_cases.erasing.erase(DEFAULT_TENANT, path_id(user_id, "user_id"))
        view = ErasedView(**msgspec.structs.asdict(done.erased))
        return ErasureView(erased=view, completed_at=done.completed_at)

    @get(
        "/v1/users/{user_id:str}/export",
        operation_id="export_user",
        summary="Export all that is kept of a user",
        media_type=LINES_MEDIA_TYPE,
        opt=STREAM,
        responses=problems(*READ_PROBLEMS),
    )
    async def export(self, use_cases: Injected, user_id: FromPath[str]) -> Stream:
        """JSON Lines, each with a `type`.

        `user`, `profile` where there is one, then each `session` followed by its `message`s in
        order, and `end` with their numbers. Without that last line the export is not whole: the
        connection is broken where a store fails meanwhile.
        """
        decoded = path_id(user_id, "user_id")
        pieces = await use_cases.exporting.export(DEFAULT_TENANT, decoded)
        return Stream(
            _lines(pieces),
            media_type=LINES_MEDIA_TYPE,
            # The user's id stays out of it: it may hold anything.
            headers={"content-disposition": 'attachment; filename="export.ndjson"'},
        )


async def _lines(pieces: AsyncGenerator[Piece]) -> AsyncGenerator[bytes]:
    async with aclosing(pieces):
        async for piece in pieces:
            yield _encoded(piece)


def _encoded(piece: Piece) -> bytes:
    match piece:
        case UserPiece():
            return _line("user", piece)
        case Profile(topics=topics, updated_at=updated_at):
            return _line("profile", ProfileLine(topics=topics, updated_at=updated_at))
        case Session():
            return _line("session", view_session(piece, id_time(piece.active_id)))
        case MessagesPiece(session_id=session_id, messages=messages):
            views = (view_message(message, session_id) for message in messages)
            return b"".join(_line("message", view) for view in views)
        case EndPiece():
            return _line("end", piece)


def _line(kind: str, value: msgspec.Struct) -> bytes:
    return b'{"type":"%s",' % kind.encode() + msgspec.json.encode(value)[1:] + b"\n"

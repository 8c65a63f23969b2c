"""Importing a file of many sessions: consecutive lines of one session are one import."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final

import msgspec

from service.core.import_lines import ImportLine, Numbered, decode_line, in_line, split_lines
from service.core.importing import Importing
from service.domain.errors import (
    ChatMemoryError,
    FieldError,
    InvalidRequest,
    InvalidValue,
    PreconditionFailed,
)
from service.domain.ids import check_id
from service.domain.sessions import SessionRef
from service.ports import Import

PASSED_OVER: Final = frozenset({"user", "profile", "end"})
"""Lines of an export that are no part of a session."""


class FileLine(ImportLine, frozen=True, kw_only=True):
    """A message of a session that it names."""

    user_id: str | None = None


class _Kind(msgspec.Struct):
    type: Any = None


class _SessionLine(msgspec.Struct):
    """What an export says of a session; its settings are not imported."""

    id: str | None = None
    session_id: str | None = None
    user_id: str | None = None


class Progress(msgspec.Struct, kw_only=True):
    """Counted while it runs."""

    bytes: int = 0
    messages: int = 0
    sessions: int = 0
    skipped: int = 0


class FileImportFailed(ChatMemoryError):
    """An import of a file ended; the sessions before the one at fault are there."""

    def __init__(self, session_id: str | None, line: int, cause: ChatMemoryError) -> None:
        # What is wrong with a line names it by itself, and it may be one of those before.
        places = [] if cause.detail.startswith("line ") else [f"line {line}"]
        places += [] if session_id is None else [f"session {session_id!r}"]
        super().__init__(": ".join([", ".join(places), cause.detail]).removeprefix(": "))


class FileImport:
    """One run over a file; ``tell`` is called after each session and as the lines go by."""

    def __init__(
        self,
        importing: Importing,
        *,
        tenant: str,
        line_bytes_max: int,
        skip_existing: bool,
        tell: Callable[[Progress], None],
    ) -> None:
        self._importing = importing
        self._tenant = tenant
        self._line_bytes_max = line_bytes_max
        self._skip_existing = skip_existing
        self._tell = tell
        self._message_decoder: msgspec.json.Decoder[FileLine] = msgspec.json.Decoder(FileLine)
        self._kind_decoder: msgspec.json.Decoder[_Kind] = msgspec.json.Decoder(_Kind)
        self._session_decoder: msgspec.json.Decoder[_SessionLine] = msgspec.json.Decoder(
            _SessionLine
        )
        self.progress = Progress()
        self._line = 0
        self._next: tuple[SessionRef, Numbered, str | None] | None = None
        self._owners: tuple[str | None, str | None] = (None, None)

    async def run(self, chunks: AsyncIterator[bytes]) -> Progress:
        """Import all sessions in order. Raises FileImportFailed naming line and session."""
        session_id: str | None = None
        try:
            async with (
                aclosing(self._counted(chunks)) as body,
                aclosing(split_lines(body, line_bytes_max=self._line_bytes_max)) as texts,
                aclosing(self._messages(texts)) as messages,
            ):
                self._next = await anext(messages, None)
                while self._next is not None:
                    session_id = self._next[0].session_id
                    await self._session(messages)
                    session_id = None
        except ChatMemoryError as error:
            raise FileImportFailed(session_id, self._line, error) from error
        return self.progress

    async def _session(
        self, messages: AsyncIterator[tuple[SessionRef, Numbered, str | None]]
    ) -> None:
        if self._next is None:
            return
        ref, _, user_id = self._next
        before = self.progress.messages
        async with aclosing(self._of(ref, user_id, messages)) as lines:
            try:
                await self._importing.run(Import(ref=ref, user_id=user_id), lines)
                self.progress.sessions += 1
            except ChatMemoryError as error:
                # Nothing of this session is stored.
                self.progress.messages = before
                if not (self._skip_existing and isinstance(error, PreconditionFailed)):
                    raise
                async for _ in lines:
                    pass
                self.progress.messages = before
                self.progress.skipped += 1
        self._tell(self.progress)

    async def _of(
        self,
        ref: SessionRef,
        user_id: str | None,
        messages: AsyncIterator[tuple[SessionRef, Numbered, str | None]],
    ) -> AsyncGenerator[Numbered]:
        """The lines of one session, up to the first of another."""
        while self._next is not None and self._next[0] == ref:
            _, numbered, named = self._next
            if named not in {None, user_id}:
                raise InvalidValue.of(
                    in_line(numbered.number, "user_id"), "is another one than the session's"
                )
            self._line = numbered.number
            self.progress.messages += 1
            self._tell(self.progress)
            yield numbered
            self._next = await anext(messages, None)

    async def _messages(
        self, texts: AsyncIterator[tuple[int, bytes]]
    ) -> AsyncGenerator[tuple[SessionRef, Numbered, str | None]]:
        async for number, text in texts:
            self._line = number
            match decode_line(self._kind_decoder, number, text).type:
                case "session":
                    self._note_session(number, text)
                case str() as kind if kind in PASSED_OVER:
                    continue
                case _:
                    yield self._message(number, text)

    def _note_session(self, number: int, text: bytes) -> None:
        line = decode_line(self._session_decoder, number, text)
        self._owners = (line.id or line.session_id, line.user_id)

    def _message(self, number: int, text: bytes) -> tuple[SessionRef, Numbered, str | None]:
        line = decode_line(self._message_decoder, number, text)
        announced, owner = self._owners
        session_id = line.session_id or announced
        if session_id is None:
            field = in_line(number, "session_id")
            raise InvalidRequest(
                f"{field}: is required", errors=[FieldError(field=field, message="is required")]
            )
        check_id(session_id, in_line(number, "session_id"))
        named = line.user_id or (owner if session_id == announced else None)
        return SessionRef(self._tenant, session_id), Numbered(number, len(text), line), named

    async def _counted(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for chunk in chunks:
            self.progress.bytes += len(chunk)
            yield chunk

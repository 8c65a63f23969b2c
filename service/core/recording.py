"""Recording: messages and sessions that a caller gives the service to keep."""

from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec
from msgspec import UNSET, UnsetType

from service.core.counting import Counting
from service.domain.context import check_options
from service.domain.errors import InvalidValue, Overloaded
from service.domain.ids import MessageId, check_id, id_time
from service.domain.messages import (
    BATCH_MESSAGES_MAX,
    METADATA_BYTES_MAX,
    MessageBody,
    check_json,
    check_message,
    encode_body,
)
from service.domain.sessions import (
    TTL_SECONDS_MAX,
    TTL_SECONDS_MIN,
    Session,
    SessionDocument,
    SessionRef,
)
from service.ports import Append, Appended, Create, Once, Sessions, Transcripts, Wanted

REPLACE_ATTEMPTS_MAX: Final = 5


class Recording:
    """Append, clear, and the life of sessions."""

    def __init__(
        self,
        transcripts: Transcripts,
        sessions: Sessions,
        counting: Counting,
        *,
        message_bytes_max: int,
    ) -> None:
        self._transcripts = transcripts
        self._sessions = sessions
        self._counting = counting
        self._message_bytes_max = message_bytes_max

    async def append(
        self,
        ref: SessionRef,
        messages: Sequence[MessageBody],
        *,
        user_id: str | None,
        once: Once | None,
        if_last_id: MessageId | UnsetType | None = UNSET,
        durability: Wanted = "journaled",
    ) -> Appended:
        """Accept all messages or none.

        Raises InvalidValue naming the message and field at fault.
        """
        if not 1 <= len(messages) <= BATCH_MESSAGES_MAX:
            raise InvalidValue.of("messages", f"must be 1 to {BATCH_MESSAGES_MAX} messages")
        check_session(ref)
        if user_id is not None:
            check_id(user_id, "user_id")
        for place, message in enumerate(messages):
            check_message(message, f"messages[{place}]", bytes_max=self._message_bytes_max)
        bodies = tuple(map(encode_body, await self._counting.all_counted(messages)))
        return await self._transcripts.append(
            Append(
                ref=ref,
                bodies=bodies,
                user_id=user_id,
                once=once,
                if_last_id=if_last_id,
                durability=durability,
            )
        )

    async def clear(self, ref: SessionRef) -> None:
        check_session(ref)
        await self._transcripts.clear(ref)

    async def create(self, command: Create) -> tuple[Session, bool]:
        """The session as it was made, and whether an earlier call with the same key made it.

        Raises InvalidValue, SessionExists, IdempotencyKeyReused.
        """
        check_id(command.ref.session_id, "id")
        if command.user_id is not None:
            check_id(command.user_id, "user_id")
        check_document(command.document)
        created = await self._sessions.create(command)
        session = Session(
            id=command.ref.session_id,
            user_id=command.user_id,
            document=command.document,
            created_at=id_time(created.born_id),
            active_id=created.born_id,
            message_count=0,
            last_id=None,
            archived_through=None,
            ttl=created.ttl,
        )
        return session, created.replayed

    async def patch(self, ref: SessionRef, changes: dict[str, Any]) -> Session:
        """Apply a merge patch (RFC 7396) to the session's document."""
        check_session(ref)
        for name, value in changes.items():
            check_json(value, name)
        for _ in range(REPLACE_ATTEMPTS_MAX):
            session = await self._sessions.get(ref)
            document = patched(session.document, changes)
            check_document(document)
            if document == session.document:
                return session
            if await self._sessions.replace(ref, session.document, document):
                return await self._sessions.get(ref)
        raise _contended()

    async def delete(self, ref: SessionRef) -> None:
        check_session(ref)
        await self._sessions.delete(ref)


def check_session(ref: SessionRef) -> None:
    check_id(ref.session_id, "session_id")


def check_document(document: SessionDocument) -> None:
    """Raises InvalidValue naming the field and the limit."""
    if document.metadata is not None:
        check_json(document.metadata, "metadata")
        size = len(msgspec.json.encode(document.metadata))
        if size > METADATA_BYTES_MAX:
            raise InvalidValue.of(
                "metadata", f"must be at most {METADATA_BYTES_MAX} bytes of JSON, is {size}"
            )
    check_options(document.context, "context")
    ttl = document.ttl_seconds
    if ttl is not None and not TTL_SECONDS_MIN <= ttl <= TTL_SECONDS_MAX:
        raise InvalidValue.of("ttl_seconds", f"must be {TTL_SECONDS_MIN} to {TTL_SECONDS_MAX}")


def patched(document: SessionDocument, changes: dict[str, Any]) -> SessionDocument:
    """The document after a merge patch. Raises msgspec.ValidationError where it no longer fits."""
    return msgspec.convert(
        merge_patch(msgspec.to_builtins(document), changes), SessionDocument, strict=True
    )


def merge_patch(target: object, patch: object) -> Any:
    """RFC 7396: objects merge, null removes, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged: dict[str, Any] = (
        dict(cast("dict[str, Any]", target)) if isinstance(target, dict) else {}
    )
    for name, value in cast("dict[str, Any]", patch).items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def _contended() -> Overloaded:
    return Overloaded("The session's document is being changed by others all the time.")

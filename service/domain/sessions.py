"""Sessions: one conversation of one tenant, its owner and its settings."""

import hashlib
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from service.domain.context import ContextOptions
from service.domain.ids import MessageId

TTL_SECONDS_MIN: Final = 60
TTL_SECONDS_MAX: Final = 30 * 24 * 3600
DEFAULT_TENANT: Final = "default"
"""The tenant of every request while authentication is off."""


class SessionRef(msgspec.Struct, frozen=True, order=True):
    """Names a session: nothing is read or written without its tenant."""

    tenant: str
    session_id: str


class SessionDocument(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a caller sets on a session."""

    metadata: dict[str, Any] | None = None
    context: ContextOptions | None = None
    ttl_seconds: int | None = None


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A session as it stands, hot and archived parts merged."""

    id: str
    user_id: str | None
    document: SessionDocument
    created_at: datetime
    active_id: MessageId
    """Id of the newest accepted event; sessions are listed by it."""
    message_count: int
    last_id: MessageId | None
    archived_through: MessageId | None
    ttl: int | None
    """Seconds left in the hot memory; None when it is not there."""


def session_key(ref: SessionRef) -> UUID:
    """Fixed width, computed and never looked up: 128 bits of BLAKE2b over tenant and id.

    The length keeps the two apart.
    """
    name = f"{len(ref.tenant)}:{ref.tenant}{ref.session_id}".encode()
    return UUID(bytes=hashlib.blake2b(name, digest_size=16).digest())


_document_decoder: Final = msgspec.json.Decoder(SessionDocument)


def encode_document(document: SessionDocument) -> bytes:
    return msgspec.json.encode(document)


def decode_document(text: bytes | str) -> SessionDocument:
    return _document_decoder.decode(text) if text else SessionDocument()

"""The fixed-width key of a session, computed and never looked up."""

import hashlib
from uuid import UUID

from service.domain.sessions import SessionRef


def session_key(ref: SessionRef) -> UUID:
    """128 bits of BLAKE2b over tenant and id; the length keeps the two apart."""
    name = f"{len(ref.tenant)}:{ref.tenant}{ref.session_id}".encode()
    return UUID(bytes=hashlib.blake2b(name, digest_size=16).digest())


def is_row_of(ref: SessionRef, tenant: str, session_id: str) -> bool:
    """Whether a row that was found by its key is this session's; a tombstone names none."""
    return tenant == ref.tenant and session_id in {"", ref.session_id}


def import_lock(key: str) -> int:
    """The advisory lock that keeps imports into a session, or under a key, apart."""
    digest = hashlib.blake2b(f"import:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)

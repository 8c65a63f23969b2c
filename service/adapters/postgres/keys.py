"""Keys of rows and locks."""

import hashlib

from service.domain.sessions import SessionRef, session_key

__all__ = ["import_lock", "is_row_of", "session_key"]


def is_row_of(ref: SessionRef, tenant: str, session_id: str) -> bool:
    """Whether a row that was found by its key is this session's; a tombstone names none."""
    return tenant == ref.tenant and session_id in {"", ref.session_id}


def import_lock(key: str) -> int:
    """The advisory lock that keeps imports into a session, or under a key, apart."""
    digest = hashlib.blake2b(f"import:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)

"""The fixed-width key of a session, computed and never looked up."""

import hashlib
from uuid import UUID

from service.domain.sessions import SessionRef


def session_key(ref: SessionRef) -> UUID:
    """128 bits of BLAKE2b over tenant and id; the length keeps the two apart."""
    name = f"{len(ref.tenant)}:{ref.tenant}{ref.session_id}".encode()
    return UUID(bytes=hashlib.blake2b(name, digest_size=16).digest())

"""Names of the Redis keys. All keys of a shard share one hash tag, so one script may touch them."""

import hashlib
from typing import Final

import msgspec

from service.domain.sessions import SessionRef

FLUSHERS_KEY: Final = "{cm}:flushers"
LAYOUT_KEY: Final = "{cm}:layout"
STOPS_CHANNELS: Final = "cm:stops:"
"""What the channels begin with on which processes hear of stops; what follows is random."""


class SessionKeys(msgspec.Struct, frozen=True):
    """The keys of one session; ``listed`` in the order in which the scripts take them."""

    head: str
    tail: str
    pins: str
    journal: str
    shard: str
    index: str
    calls: str
    dead: str

    def listed(self) -> list[str]:
        return [
            *(self.head, self.tail, self.pins, self.journal, self.shard, self.index),
            self.calls,
        ]


class Keys:
    """Key names for a fixed number of shards."""

    def __init__(self, shards: int) -> None:
        self.shards = shards

    def shard(self, ref: SessionRef) -> int:
        """Stable over processes and releases: where a session's journal entries are."""
        name = f"{len(ref.tenant)}:{ref.tenant}{ref.session_id}".encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) % self.shards

    def session(self, ref: SessionRef) -> SessionKeys:
        shard = self.shard(ref)
        tag = _tag(shard)
        tenant = _segment(ref.tenant)
        name = f"{tenant}:{_segment(ref.session_id)}"
        return SessionKeys(
            head=f"{tag}:head:{name}",
            tail=f"{tag}:tail:{name}",
            pins=f"{tag}:pins:{name}",
            journal=f"{tag}:journal",
            shard=f"{tag}:shard",
            index=f"{tag}:index:{tenant}",
            calls=f"{tag}:calls:{name}",
            dead=f"{tag}:dead:{name}",
        )

    def profile(self, tenant: str, user_id: str) -> str:
        """A digest: what stands for no profile must not name the user either."""
        name = f"{_segment(tenant)}:{_segment(user_id)}".encode()
        digest = hashlib.blake2b(name, digest_size=16).hexdigest()
        return f"{_tag(self.shard(SessionRef(tenant, user_id)))}:profile:{digest}"

    def once(self, ref: SessionRef, operation: str, key: str) -> str:
        """A digest: the record outlives its session, and must not name it then."""
        segments = (operation, ref.tenant, ref.session_id, key)
        name = ":".join(map(_segment, segments)).encode()
        digest = hashlib.blake2b(name, digest_size=16).hexdigest()
        return f"{_tag(self.shard(ref))}:once:{digest}"

    def turn(self, ref: SessionRef, turn_id: str) -> str:
        return f"{_tag(self.shard(ref))}:turn:{_turn_digest(ref, turn_id)}"

    def waiting(self, ref: SessionRef) -> str:
        return f"{_tag(self.shard(ref))}:waiting:{_turn_digest(ref, '')}"

    def pieces(self, ref: SessionRef, turn_id: str) -> str:
        return f"{_tag(self.shard(ref))}:pieces:{_turn_digest(ref, turn_id)}"

    def journal(self, shard: int) -> str:
        return f"{_tag(shard)}:journal"

    def shard_counters(self, shard: int) -> str:
        return f"{_tag(shard)}:shard"

    def owner(self, shard: int) -> str:
        return f"{_tag(shard)}:owner"

    def letters(self, shard: int) -> str:
        return f"{_tag(shard)}:letters"

    def letter(self, shard: int, letter_id: str) -> str:
        return f"{_tag(shard)}:letter:{letter_id}"

    def index(self, shard: int, tenant: str) -> str:
        return f"{_tag(shard)}:index:{_segment(tenant)}"


def _turn_digest(ref: SessionRef, turn_id: str) -> str:
    """As of ``once``: what outlives its session must not name it."""
    name = ":".join(map(_segment, (ref.tenant, ref.session_id, turn_id))).encode()
    return hashlib.blake2b(name, digest_size=16).hexdigest()


def _tag(shard: int) -> str:
    return f"{{cm:{shard:02d}}}"


def _segment(text: str) -> str:
    # A separator inside a segment could make one tenant's key read as another's.
    return text.replace("%", "%25").replace(":", "%3A")

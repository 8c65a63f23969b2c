"""Bodies of what is kept about users."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service.api.bodies import Id, RequestBody, Text
from service.domain.ids import MessageId
from service.domain.profiles import Fact, Topics


class FactBody(RequestBody, frozen=True, kw_only=True):
    fact: Text
    source_message_id: Annotated[
        str | None,
        Meta(description="Id of the message that told it.", extra_json_schema={"format": "uuid"}),
    ] = None

    def domain(self) -> Fact:
        source = self.source_message_id
        return Fact(fact=self.fact, source_message_id=None if source is None else MessageId(source))


class ProfileBody(RequestBody, frozen=True, kw_only=True):
    """Topics of facts; at most PROFILE_BYTES_MAX (64 KiB) of JSON."""

    topics: dict[Id, list[FactBody]]

    def domain(self) -> Topics:
        return {name: [fact.domain() for fact in facts] for name, facts in self.topics.items()}


class ProfilePatchBody(RequestBody, frozen=True, kw_only=True):
    """A merge patch (RFC 7396): absent stays, null removes."""

    topics: dict[Id, list[FactBody] | None] | UnsetType | None = UNSET

    def changes(self) -> dict[str, list[Fact] | None] | None:
        if self.topics is None:
            return None
        topics = {} if isinstance(self.topics, UnsetType) else self.topics
        return {
            name: None if facts is None else [fact.domain() for fact in facts]
            for name, facts in topics.items()
        }


class ProfileView(msgspec.Struct, frozen=True, kw_only=True):
    user_id: str
    topics: Topics
    updated_at: datetime

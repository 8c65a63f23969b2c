"""What is known about a user."""

import re
from typing import Annotated, Any, Final

from litestar import Controller, Response, delete, get, patch, put
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, HeaderParameter, JSONBody

from service.api.documentation import problems
from service.api.requests import path_id
from service.api.use_cases import Injected
from service.api.user_bodies import ProfileBody, ProfilePatchBody, ProfileView
from service.core.profiles import Condition, Written
from service.domain.errors import InvalidValue
from service.domain.profiles import Profile
from service.domain.sessions import DEFAULT_TENANT

IF_MATCH: Final = "If-Match"
IF_NONE_MATCH: Final = "If-None-Match"

IfMatch = Annotated[
    str | None,
    HeaderParameter(name=IF_MATCH, description="ETags, or * for any: else nothing is changed."),
]
IfNoneMatch = Annotated[
    str | None, HeaderParameter(name=IF_NONE_MATCH, description="ETags, or * for any.")
]

PROFILE_PROBLEMS: Final = (
    *("invalid_request", "invalid_value"),
    *("hot_unavailable", "archive_unavailable", "overloaded"),
)
WRITE_PROBLEMS: Final = (
    *("precondition_failed", "too_large", "unsupported_media_type"),
    *PROFILE_PROBLEMS,
)

MADE: Final = {201: ResponseSpec(ProfileView, description="There was none.")}
UNCHANGED: Final = {304: ResponseSpec(None, description="It is the one that the caller has.")}

_TAG: Final = re.compile(r'\s*(W/)?"([\x21\x23-\x7e]*)"\s*')


class Users(Controller):
    """The profile of a user: topics of facts that outlive sessions."""

    tags = ["Users"]  # noqa: RUF012  # Litestar's convention.
    path = "/v1/users/{user_id:str}"

    @get(
        "/profile",
        operation_id="get_profile",
        summary="Get a user's profile",
        responses=problems("not_found", *PROFILE_PROBLEMS) | UNCHANGED,
    )
    async def profile(
        self, use_cases: Injected, user_id: FromPath[str], if_none_match: IfNoneMatch = None
    ) -> Response[ProfileView]:
        """404 while there is none; 304 where `If-None-Match` has its ETag."""
        name = path_id(user_id, "user_id")
        profile = await use_cases.profiles.get(DEFAULT_TENANT, name)
        tags = etags(if_none_match, IF_NONE_MATCH, weak=True)
        if tags is not None and (tags == ("*",) or profile.version in tags):
            # A 304 has no body.
            unchanged: Response[Any] = Response(None, status_code=304, headers=_etag(profile))
            return unchanged
        return Response(_view(name, profile), headers=_etag(profile))

    @put(
        "/profile",
        operation_id="put_profile",
        summary="Replace a user's profile",
        responses=problems(*WRITE_PROBLEMS) | MADE,
    )
    async def replace(
        self,
        use_cases: Injected,
        user_id: FromPath[str],
        data: JSONBody[ProfileBody],
        if_match: IfMatch = None,
        if_none_match: IfNoneMatch = None,
    ) -> Response[ProfileView]:
        """201 where there was none.

        `If-Match` guards against lost updates, `If-None-Match: *` only makes one.
        """
        name = path_id(user_id, "user_id")
        condition = condition_of(if_match, if_none_match)
        written = await use_cases.profiles.put(DEFAULT_TENANT, name, data.domain(), condition)
        return _written(name, written)

    @patch(
        "/profile",
        operation_id="patch_profile",
        summary="Change topics of a user's profile",
        responses=problems(*WRITE_PROBLEMS) | MADE,
    )
    async def change(
        self,
        use_cases: Injected,
        user_id: FromPath[str],
        data: JSONBody[ProfilePatchBody],
        if_match: IfMatch = None,
    ) -> Response[ProfileView]:
        """A merge patch (RFC 7396): a topic's list replaces it, null removes it, the others stay.

        Makes the profile if needed. Patches of different topics at once lose nothing.
        """
        name = path_id(user_id, "user_id")
        condition = condition_of(if_match, None)
        changes = data.changes()
        written = await use_cases.profiles.patch(DEFAULT_TENANT, name, changes, condition)
        return _written(name, written)

    @delete(
        "/profile",
        operation_id="delete_profile",
        summary="Delete a user's profile",
        responses=problems("not_found", "precondition_failed", *PROFILE_PROBLEMS),
    )
    async def remove(
        self, use_cases: Injected, user_id: FromPath[str], if_match: IfMatch = None
    ) -> None:
        """The user's sessions stay."""
        name = path_id(user_id, "user_id")
        await use_cases.profiles.delete(DEFAULT_TENANT, name, condition_of(if_match, None))


def condition_of(if_match: str | None, if_none_match: str | None) -> Condition:
    """RFC 9110, section 13.1. Raises InvalidValue naming the header."""
    wanted = etags(if_match, IF_MATCH, weak=False)
    unwanted = etags(if_none_match, IF_NONE_MATCH, weak=True)
    if unwanted is not None and unwanted != ("*",):
        raise InvalidValue.of(IF_NONE_MATCH, "may only be * here")
    if unwanted is not None:
        return Condition(exists=False, versions=None if wanted is None else wanted)
    if wanted == ("*",):
        return Condition(exists=True)
    return Condition(versions=wanted)


def etags(header: str | None, name: str, *, weak: bool) -> tuple[str, ...] | None:
    """The opaque tags of a list; weak ones count only where ``weak`` says so."""
    if header is None:
        return None
    if header.strip() == "*":
        return ("*",)
    tags: list[str] = []
    place = 0
    while match := _TAG.match(header, place):
        if weak or not match[1]:
            tags.append(match[2])
        place = match.end()
        if place == len(header):
            return tuple(tags)
        if header[place] != ",":
            break
        place += 1
    raise InvalidValue.of(name, 'must be * or a list of ETags such as "abc"')


def _written(user_id: str, written: Written) -> Response[ProfileView]:
    return Response(
        _view(user_id, written.profile),
        status_code=201 if written.made else 200,
        headers=_etag(written.profile),
    )


def _view(user_id: str, profile: Profile) -> ProfileView:
    return ProfileView(user_id=user_id, topics=profile.topics, updated_at=profile.updated_at)


def _etag(profile: Profile) -> dict[str, str]:
    return {"etag": f'"{profile.version}"'}

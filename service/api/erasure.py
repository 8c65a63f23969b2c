"""What a person may ask for: to be forgotten."""

from datetime import datetime

import msgspec
from litestar import Controller, delete
from litestar.params import FromPath

from service.api.documentation import READ_PROBLEMS, problems
from service.api.requests import path_id
from service.api.use_cases import Injected
from service.domain.sessions import DEFAULT_TENANT


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


class UserErasure(Controller):
    """Forgetting a user."""

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

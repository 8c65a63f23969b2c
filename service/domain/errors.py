"""What can go wrong, in the words of the domain: a code, a sentence, data, and whether to retry.

HTTP is not mentioned here: ``service.api.problems`` maps each code to its status.
No error carries message text, secrets or connection strings.
"""

from collections.abc import Sequence
from typing import ClassVar

import msgspec


class FieldError(msgspec.Struct, frozen=True, kw_only=True):
    """One field at fault and what is wrong with it."""

    field: str
    message: str


class ChatMemoryError(Exception):
    """Base of every refusal; ``detail`` is written for the caller."""

    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        retry_after_seconds: int | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after_seconds = retry_after_seconds
        self.may_retry = type(self).retryable if retryable is None else retryable


class Unavailable(ChatMemoryError):
    """Something the service needs is away or full; the same call may succeed later."""

    retryable = True

    def __init__(self, detail: str, *, retry_after_seconds: int = 1) -> None:
        super().__init__(detail, retry_after_seconds=retry_after_seconds)


class InvalidRequest(ChatMemoryError):
    code = "invalid_request"
    title = "The request does not fit its schema"


class InvalidValue(ChatMemoryError):
    """A value that fits the schema and is refused; names the field and the limit."""

    code = "invalid_value"
    title = "A value is not acceptable"

    @classmethod
    def of(cls, field: str, message: str) -> "InvalidValue":
        return cls(f"{field}: {message}", errors=[FieldError(field=field, message=message)])


class TooLarge(ChatMemoryError):
    code = "too_large"
    title = "Too large"

    @classmethod
    def of(cls, field: str, message: str) -> "TooLarge":
        return cls(f"{field}: {message}", errors=[FieldError(field=field, message=message)])


class NotFound(ChatMemoryError):
    code = "not_found"
    title = "Not found"


class SessionNotFound(NotFound):
    """Unknown, deleted, or owned by another user: the caller is not told which."""

    def __init__(self) -> None:
        super().__init__("There is no session with this id.")


class TurnNotFound(NotFound):
    """Unknown, forgotten by its time, or of another session."""

    def __init__(self) -> None:
        super().__init__("There is no turn with this id in this session.")


class UserNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("Nothing is known of this user.")


class SessionExists(ChatMemoryError):
    code = "session_exists"
    title = "The session exists"


class SessionBusy(ChatMemoryError):
    """Another turn or an import is running in the session."""

    code = "session_busy"
    title = "The session is busy"

    def __init__(
        self,
        *,
        retry_after_seconds: int,
        detail: str = "Another turn is running in this session.",
    ) -> None:
        super().__init__(detail, retry_after_seconds=retry_after_seconds)


class TurnLost(ChatMemoryError):
    """The turn's lease went to another owner; its answer was not written."""

    code = "turn_state"
    title = "The turn is over"
    retryable = True

    def __init__(self) -> None:
        super().__init__("The turn lost its session while the model was answering.")


class TurnNotWaiting(ChatMemoryError):
    """Results of tools for a turn that has not asked for them, has got them, or is past."""

    code = "turn_state"
    title = "The turn does not wait for results"

    def __init__(
        self,
        detail: str = (
            "The turn waits for no results of tools: it made no calls, they were answered, "
            "or something else was said since."
        ),
    ) -> None:
        super().__init__(detail)


class RequestRunning(ChatMemoryError):
    """A call with the same idempotency key has not finished; a turn is named by its id."""

    code = "request_running"
    title = "The request is running"
    retryable = True

    def __init__(self, turn_id: str = "") -> None:
        super().__init__(
            "A request with this Idempotency-Key is still running.", retry_after_seconds=1
        )
        self.turn_id = turn_id


class PreconditionFailed(ChatMemoryError):
    """The session is not as the caller last saw it; ``last_id`` is its newest message, if any."""

    code = "precondition_failed"
    title = "The session has moved on"

    def __init__(
        self,
        last_id: str | None,
        detail: str = "The session's last message is another one than if_last_id says.",
    ) -> None:
        super().__init__(detail)
        self.last_id = last_id


class ProfileNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("There is no profile of this user.")


class ProfileChanged(ChatMemoryError):
    """The profile is not the one that the caller wanted to change; ``version`` is the present."""

    code = "precondition_failed"
    title = "The profile has changed"

    def __init__(self, version: str | None) -> None:
        super().__init__("The profile is not as If-Match or If-None-Match say.")
        self.version = version


class IdempotencyKeyReused(ChatMemoryError):
    code = "idempotency_key_reused"
    title = "The idempotency key belongs to another request"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used with another request body.")


class DurabilityUnavailable(ChatMemoryError):
    """The store cannot reach what was asked for, now or ever; nothing was written."""

    code = "durability_unavailable"
    title = "The durability is not available"


class ContextTooLarge(ChatMemoryError):
    code = "context_too_large"
    title = "The context does not fit the model"

    @classmethod
    def over(cls, tokens: int, budget: int) -> "ContextTooLarge":
        """What must be shown is so many tokens above the budget."""
        message = f"what must be shown is {tokens} tokens over the budget of {budget}"
        return cls(
            f"max_tokens: {message}", errors=[FieldError(field="max_tokens", message=message)]
        )


class ModelError(ChatMemoryError):
    code = "model_error"
    title = "The model refused or broke the call"


class ModelUnavailable(Unavailable):
    code = "model_unavailable"
    title = "The model is unavailable"


class ModelTimeout(ChatMemoryError):
    code = "model_timeout"
    title = "The model did not answer in time"
    retryable = True


class ArchiveUnavailable(Unavailable):
    """PostgreSQL cannot be asked; what was accepted before is safe in the journal."""

    code = "archive_unavailable"
    title = "The archive is unavailable"


class ArchiveRefused(ArchiveUnavailable):
    """PostgreSQL refuses what it was given for its content: the same call never succeeds.

    ``reason`` is an SQLSTATE or a word of ours; what the server says quotes values.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"The archive refuses the content ({reason}).")
        self.reason = reason


class DeadLettered(ArchiveUnavailable):
    """A message that was to be archived is a dead letter: it stands, and somebody must look."""

    retryable = False

    def __init__(self) -> None:
        super().__init__(
            "The archive refused a message for its content. It stands as journaled and is kept as "
            "a dead letter until an operator retries or drops it."
        )
        self.retry_after_seconds = None


class DeadLetterNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("There is no dead letter with this id.")


class HotUnavailable(Unavailable):
    """Redis cannot be asked: nothing can be promised, so nothing is accepted."""

    code = "hot_unavailable"
    title = "The hot memory is unavailable"


class BacklogFull(Unavailable):
    code = "backlog_full"
    title = "The write-behind queue is full"


class Overloaded(Unavailable):
    code = "overloaded"
    title = "The service is overloaded"


class Draining(Unavailable):
    code = "draining"
    title = "The service is shutting down"

"""What a caller of a turn asks for, and the limits of it."""

from typing import Final, Literal

import msgspec

from service.core.recording import check_session
from service.domain.context import ContextOptions, check_options
from service.domain.errors import InvalidValue
from service.domain.ids import check_id
from service.domain.messages import check_text
from service.domain.sessions import SessionRef
from service.ports import Once, Wanted

OnBusy = Literal["reject", "wait"]
"""What a call does beside another turn of its session."""

TEMPERATURE_MAX: Final = 2.0
OUTPUT_TOKENS_MAX: Final = 1_000_000


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller says, and how it wants to be answered."""

    ref: SessionRef
    message: str
    user_id: str | None = None
    model: str | None = None
    instructions: str | None = None
    temperature: float | None = None
    max_output_tokens: int | None = None
    context: ContextOptions | None = None
    once: Once | None = None
    durability: Wanted = "journaled"
    """What the answer is waited to reach."""
    on_busy: OnBusy = "reject"

    @property
    def options(self) -> ContextOptions:
        return self.context or ContextOptions()


def check_request(request: ChatRequest, *, message_bytes_max: int) -> None:
    """Raises InvalidValue naming the field and the limit."""
    check_session(request.ref)
    if request.user_id is not None:
        check_id(request.user_id, "user_id")
    if request.model is not None:
        check_id(request.model, "model")
    check_text(request.message, "message", bytes_max=message_bytes_max)
    if request.instructions is not None:
        check_text(request.instructions, "instructions", bytes_max=message_bytes_max)
    check_options(request.context, "context")
    _check_sampling(request)


def _check_sampling(request: ChatRequest) -> None:
    temperature, tokens = request.temperature, request.max_output_tokens
    if temperature is not None and not 0 <= temperature <= TEMPERATURE_MAX:
        raise InvalidValue.of("temperature", f"must be 0 to {TEMPERATURE_MAX:g}")
    if tokens is not None and not 1 <= tokens <= OUTPUT_TOKENS_MAX:
        raise InvalidValue.of("max_output_tokens", f"must be 1 to {OUTPUT_TOKENS_MAX}")

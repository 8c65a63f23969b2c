"""What a caller of a turn asks for, and the limits of it."""

from typing import Any, Final, Literal

import msgspec

from service.core.recording import check_session
from service.domain.context import ContextOptions, check_options
from service.domain.errors import InvalidValue
from service.domain.ids import TurnId, check_id
from service.domain.messages import MessageBody, check_json_size, check_parts, check_text
from service.domain.sessions import SessionRef
from service.domain.turns import Usage
from service.ports import Once, Resumption, Wanted

OnBusy = Literal["reject", "wait"]
"""What a call does beside another turn of its session."""
CHOICES: Final = frozenset({"none", "auto", "required"})
"""Of tools, beside one by its name."""

TOOLS_MAX: Final = 128
"""The most that OpenAI takes."""
TEMPERATURE_MAX: Final = 2.0
OUTPUT_TOKENS_MAX: Final = 1_000_000


class GoesOn(msgspec.Struct, frozen=True, kw_only=True):
    """A turn that is to go on with results of tools."""

    turn_id: TurnId
    resumption: Resumption
    unfit: InvalidValue | None
    """What is wrong with the results, for a call that was not made before."""


class Asked(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a turn's caller says and wants, and what came of it where the turn goes on.

    Kept as JSON with the turn while it waits for results of tools.
    """

    message: str | list[dict[str, Any]]
    """Text, or typed parts as the model's server takes them."""
    user_id: str | None = None
    model: str | None = None
    instructions: str | None = None
    temperature: float | None = None
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    context: ContextOptions | None = None
    durability: Wanted = "journaled"
    """What the answer is waited to reach."""
    said: tuple[MessageBody, ...] = ()
    """In this turn since the message: calls of tools, and their results."""
    usage: Usage = Usage()
    """Of the turn's calls of the model so far."""


class ChatRequest(Asked, frozen=True, kw_only=True):
    """What a caller says, and how it wants to be answered."""

    ref: SessionRef
    once: Once | None = None
    on_busy: OnBusy = "reject"
    goes_on: GoesOn | None = None

    @property
    def options(self) -> ContextOptions:
        return self.context or ContextOptions()

    def asked(self, **changes: Any) -> bytes:
        """What the turn can go on with, once ``said`` and ``usage`` have grown."""
        fields = {name: getattr(self, name) for name in Asked.__struct_fields__}
        return msgspec.json.encode(Asked(**fields | changes))


def check_request(request: ChatRequest, *, message_bytes_max: int) -> None:
    """Raises InvalidValue naming the field and the limit."""
    check_session(request.ref)
    if request.user_id is not None:
        check_id(request.user_id, "user_id")
    if request.model is not None:
        check_id(request.model, "model")
    if isinstance(request.message, str):
        check_text(request.message, "message", bytes_max=message_bytes_max)
    else:
        check_parts(request.message, "message", bytes_max=message_bytes_max)
    if request.instructions is not None:
        check_text(request.instructions, "instructions", bytes_max=message_bytes_max)
    check_options(request.context, "context")
    _check_sampling(request)
    _check_tools(request, bytes_max=message_bytes_max)


def _check_sampling(request: ChatRequest) -> None:
    temperature, tokens = request.temperature, request.max_output_tokens
    if temperature is not None and not 0 <= temperature <= TEMPERATURE_MAX:
        raise InvalidValue.of("temperature", f"must be 0 to {TEMPERATURE_MAX:g}")
    if tokens is not None and not 1 <= tokens <= OUTPUT_TOKENS_MAX:
        raise InvalidValue.of("max_output_tokens", f"must be 1 to {OUTPUT_TOKENS_MAX}")


def _check_tools(request: ChatRequest, *, bytes_max: int) -> None:
    if (tools := request.tools) is not None:
        if not 1 <= len(tools) <= TOOLS_MAX:
            raise InvalidValue.of("tools", f"must be 1 to {TOOLS_MAX} tools")
        for place, tool in enumerate(tools):
            _check_typed(tool, f"tools[{place}]")
        check_json_size(tools, "tools", bytes_max)
    if request.tool_choice is not None:
        _check_choice(request.tool_choice, bytes_max=bytes_max)
        if tools is None:
            raise InvalidValue.of("tool_choice", "is for a request with tools")
    if request.response_format is not None:
        _check_typed(request.response_format, "response_format")
        check_json_size(request.response_format, "response_format", bytes_max)


def _check_choice(choice: str | dict[str, Any], *, bytes_max: int) -> None:
    if isinstance(choice, dict):
        _check_typed(choice, "tool_choice")
        check_json_size(choice, "tool_choice", bytes_max)
    elif choice not in CHOICES:
        names = ", ".join(sorted(CHOICES))
        raise InvalidValue.of("tool_choice", f"must be one of {names}, or name a tool")


def _check_typed(value: dict[str, Any], field: str) -> None:
    if not isinstance(value.get("type"), str):
        raise InvalidValue.of(f"{field}.type", "must name the type")

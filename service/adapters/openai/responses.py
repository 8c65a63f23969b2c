"""The Responses wire format, which OpenAI's newer models prefer."""

from typing import Any, Final, Literal

import msgspec

from service.adapters.openai.events import Event
from service.adapters.openai.refusals import ErrorBody, of_event, read_error_names
from service.adapters.openai.responses_input import request_of
from service.adapters.openai.tool_calls import Part
from service.adapters.openai.wire import (
    UNREADABLE,
    Gathered,
    Tokens,
    empty,
    model_name,
    truncated,
    unreadable,
    usage_of,
    without_nul,
)
from service.domain.turns import Answer, Delta, Prompt, Usage

CUT_REASONS: Final = {"max_output_tokens": "length", "content_filter": "content_filter"}
THINKING: Final = frozenset(
    {"response.reasoning_text.delta", "response.reasoning_summary_text.delta"}
)
ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


class _InputDetails(msgspec.Struct):
    cached_tokens: Tokens | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: Tokens | None = None


class _Usage(msgspec.Struct):
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    total_tokens: Tokens | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _Content(msgspec.Struct):
    text: str | None = None
    refusal: str | None = None


class _Item(msgspec.Struct):
    type: str = ""
    id: str | None = None
    content: list[_Content] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None


class _IncompleteDetails(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    status: str | None = None
    output: list[_Item] = []
    incomplete_details: _IncompleteDetails | None = None
    error: ErrorBody | None = None
    model: str | None = None
    usage: msgspec.Raw = msgspec.Raw()


class _Kind(msgspec.Struct):
    type: str = ""


class _TextDelta(msgspec.Struct):
    delta: str = ""
    output_index: int | None = None
    item_id: str | None = None


class _ItemEvent(msgspec.Struct):
    item: _Item
    output_index: int | None = None


class _EndEvent(msgspec.Struct):
    response: _Response


_kinds: Final = msgspec.json.Decoder(_Kind)
_deltas: Final = msgspec.json.Decoder(_TextDelta)
_items: Final = msgspec.json.Decoder(_ItemEvent)
_ends: Final = msgspec.json.Decoder(_EndEvent)


class Responses:
    """WireFormat of POST /responses."""

    path = "/responses"

    def body(self, prompt: Prompt, *, streamed: bool) -> dict[str, Any]:
        return request_of(prompt, streamed=streamed)

    def read_answer(self, content: bytes, asked_model: str) -> Answer:
        try:
            response = msgspec.json.decode(without_nul(content), type=_Response)
        except UNREADABLE as error:
            raise unreadable() from error
        gathered = Gathered()
        _gather(response, gathered)
        return _answer(response, gathered, asked_model)

    def reading(self, asked_model: str) -> "ResponseReading":
        return ResponseReading(asked_model)


class ResponseReading:
    """Reading of the events of one response."""

    def __init__(self, asked_model: str) -> None:
        self._asked_model = asked_model
        self._gathered = Gathered()
        self._response: _Response | None = None
        self._calls: dict[int | str | None, int] = {}
        self._argued: set[int] = set()
        self.begun = False

    @property
    def ended(self) -> bool:
        return self._response is not None

    @property
    def over(self) -> bool:
        return self.ended

    def take(self, event: Event) -> Delta | None:
        if event.data == b"[DONE]":
            return None
        content = without_nul(event.data)
        try:
            kind = _kinds.decode(content).type or event.name.decode()
            if kind == "error" or (not kind and read_error_names(content)):
                raise of_event(read_error_names(content))
            delta = self._take_kind(kind, content)
        except UNREADABLE as error:
            raise unreadable() from error
        self.begun = self.begun or delta is not None or kind in THINKING
        return delta

    def answer(self) -> Answer:
        if self._response is None:
            raise truncated()
        if not self._gathered.text and self._gathered.tool_calls() is None:
            # A server that streams the end alone.
            _gather(self._response, self._gathered)
        return _answer(self._response, self._gathered, self._asked_model)

    def _take_kind(self, kind: str, content: bytes) -> Delta | None:
        size = len(content)
        match kind:
            case "response.output_text.delta" | "response.refusal.delta":
                return self._gathered.add(_deltas.decode(content).delta, event_bytes=size)
            case "response.function_call_arguments.delta" | "response.custom_tool_call_input.delta":
                return self._take_arguments(kind, _deltas.decode(content), size)
            case "response.output_item.added" | "response.output_item.done":
                return self._take_item(_items.decode(content), size)
            case _ if kind in ENDS:
                self._response = _ends.decode(content).response
                if kind == "response.failed":
                    raise _failure(self._response)
            case _:
                pass
        return None

    def _take_arguments(self, kind: str, piece: _TextDelta, size: int) -> Delta | None:
        key = piece.item_id if piece.output_index is None else piece.output_index
        place = self._calls.get(key)
        if place is None or not piece.delta:
            return None
        self._argued.add(place)
        sort = "custom" if "custom" in kind else "function"
        field = "input" if sort == "custom" else "arguments"
        part = {"index": place, sort: {field: piece.delta}}
        return self._gathered.add("", [part], event_bytes=size)

    def _take_item(self, event: _ItemEvent, size: int) -> Delta | None:
        """A call's head, and its arguments where no delta brought them."""
        call = _call_of(event.item)
        if call is None:
            return None
        key = event.item.id if event.output_index is None else event.output_index
        known = key in self._calls
        place = self._calls.setdefault(key, len(self._calls))
        argued = bool(event.item.arguments or event.item.input)
        if known and (place in self._argued or not argued):
            return None
        if argued:
            self._argued.add(place)
        return self._gathered.add("", [{"index": place} | call], event_bytes=size)


def _gather(response: _Response, gathered: Gathered) -> None:
    for place, item in enumerate(response.output):
        parts = item.content or () if item.type == "message" else ()
        # A refusal is what the model said, not a fault.
        text = "".join((part.text or "") + (part.refusal or "") for part in parts)
        call = _call_of(item)
        calls = [] if call is None else [{"index": place} | call]
        gathered.add(text, calls, event_bytes=len(str(calls)))


def _call_of(item: _Item) -> Part | None:
    """The call as Chat Completions writes it, which is how it is stored and told."""
    kind: Literal["function", "custom"]
    match item.type:
        case "function_call":
            kind, said = "function", {"arguments": item.arguments or ""}
        case "custom_tool_call":
            kind, said = "custom", {"input": item.input or ""}
        case _:
            return None
    return {"id": item.call_id or item.id, "type": kind, kind: {"name": item.name or ""} | said}


def _answer(response: _Response, gathered: Gathered, asked_model: str) -> Answer:
    if response.status == "failed" or response.error is not None:
        raise _failure(response)
    if response.status not in {"completed", "incomplete", None}:
        raise truncated()
    text, tool_calls = gathered.text, gathered.tool_calls()
    details = response.incomplete_details
    reason = details.reason if details else None
    if not text and tool_calls is None:
        raise empty(CUT_REASONS.get(reason or ""))
    return Answer(
        content=text or None,
        tool_calls=tool_calls,
        complete=response.status != "incomplete",
        usage=_read_usage(response.usage),
        model=model_name(response.model, asked_model),
        finish_reason=_finish_reason(response, reason, called=tool_calls is not None),
    )


def _finish_reason(response: _Response, cut: str | None, *, called: bool) -> str | None:
    match response.status:
        case "incomplete":
            return CUT_REASONS.get(cut or "")
        case "completed":
            return "tool_calls" if called else "stop"
        case _:
            return None


def _failure(response: _Response) -> Exception:
    return of_event(response.error.names() if response.error else [])


def _read_usage(raw: msgspec.Raw) -> Usage:
    """Counts that are missing or make no sense cost nobody an answer: they are zero."""
    try:
        usage = msgspec.json.decode(raw, type=_Usage)
    except UNREADABLE:
        return Usage()
    cached, reasoning = usage.input_tokens_details, usage.output_tokens_details
    return usage_of(
        usage.input_tokens,
        usage.output_tokens,
        usage.total_tokens,
        cached=cached.cached_tokens if cached else None,
        reasoning=reasoning.reasoning_tokens if reasoning else None,
    )

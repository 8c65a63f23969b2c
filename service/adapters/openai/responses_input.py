"""A prompt in the words of the Responses wire format: items in place of messages."""

from collections.abc import Iterator
from typing import Any, Final, cast

from service.domain.turns import Prompt

INSTRUCTING: Final = frozenset({"system", "developer"})

Document = dict[str, Any]


def request_of(prompt: Prompt, *, streamed: bool) -> Document:
    """The body of a call. The server is told to keep nothing: the memory is here."""
    messages = list(prompt.messages)
    chosen: Document = {
        "instructions": None,
        "temperature": prompt.temperature,
        "max_output_tokens": prompt.max_output_tokens,
        "tools": None if prompt.tools is None else [_tool(tool) for tool in prompt.tools],
        "tool_choice": prompt.tool_choice,
        "text": None,
        "stream": True if streamed else None,
    }
    first = messages[0] if messages else {}
    # Instructions alone are no question.
    if len(messages) > 1 and first.get("role") in INSTRUCTING and _is_text(first.get("content")):
        chosen["instructions"] = messages.pop(0)["content"]
    if isinstance(prompt.tool_choice, dict):
        chosen["tool_choice"] = _flat(prompt.tool_choice)
    if prompt.response_format is not None:
        chosen["text"] = {"format": _flat(prompt.response_format)}
    custom = frozenset(_custom_ids(messages))
    items = [item for message in messages for item in _items(message, custom)]
    asked: Document = {"model": prompt.model, "input": items, "store": False}
    return asked | {name: value for name, value in chosen.items() if value is not None}


def _tool(tool: Document) -> Document:
    flat = _flat(tool)
    # Here a function is strict unless it says otherwise, there it is not.
    return {"strict": False} | flat if flat.get("type") == "function" else flat


def _flat(document: Document) -> Document:
    """``{"type": "function", "function": {...}}`` is one object in this format."""
    inner: object = document.get(str(document.get("type")))
    if not isinstance(inner, dict):
        return document
    rest = {name: value for name, value in document.items() if name != document["type"]}
    return rest | cast("Document", inner)


def _custom_ids(messages: list[Document]) -> Iterator[str]:
    for message in messages:
        for call in message.get("tool_calls") or ():
            if "custom" in call and isinstance(call.get("id"), str):
                yield call["id"]


def _items(message: Document, custom: frozenset[str]) -> Iterator[Document]:
    role, content = message.get("role"), message.get("content")
    if role == "tool":
        call_id = message.get("tool_call_id")
        kind = "custom_tool_call_output" if call_id in custom else "function_call_output"
        yield {
            "type": kind,
            "call_id": call_id,
            "output": _content(content, "input"),
        }
        return
    if content:
        kind = "output" if role == "assistant" else "input"
        yield {"role": role, "content": _content(content, kind)}
    for call in message.get("tool_calls") or ():
        yield _call(call)


def _call(call: Document) -> Document:
    custom: Document | None = call.get("custom")
    if custom is not None:
        said = {"name": custom.get("name"), "input": custom.get("input")}
        return {"type": "custom_tool_call", "call_id": call.get("id")} | said
    function: Document = call.get("function") or {}
    said = {"name": function.get("name"), "arguments": function.get("arguments")}
    return {"type": "function_call", "call_id": call.get("id")} | said


def _content(content: object, kind: str) -> object:
    if not isinstance(content, list):
        return content
    return [_part(part, kind) for part in cast("list[Document]", content)]


def _part(part: Document, kind: str) -> Document:
    match part:
        case {"type": "text", "text": text}:
            return {"type": f"{kind}_text", "text": text}
        case {"type": "image_url", "image_url": {"url": url, **rest}}:
            return {"type": "input_image", "image_url": url, **rest}
        case {"type": "file", "file": {**file}}:
            return {"type": "input_file", **file}
        case _:
            return part


def _is_text(content: object) -> bool:
    return isinstance(content, str) and bool(content)

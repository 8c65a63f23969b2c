"""What a scripted server says at /responses, where its script is written in chunks."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec

Step = TypeVar("Step")

CUT_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}


def event(kind: str, **fields: Any) -> bytes:
    document = {"type": kind} | fields
    return f"event: {kind}\n".encode() + b"data: " + msgspec.json.encode(document) + b"\n\n"


def translated(steps: Sequence[Step]) -> Iterator[Step | bytes]:
    """The same answer as events of a response; what is no whole chunk stays as it is."""
    usage = next((found for step in steps if (found := _document(step).get("usage"))), None)
    for step in steps:
        document = _document(step)
        if not document:
            yield step
        elif error := document.get("error"):
            name = error["code"] if isinstance(error["code"], str) else error["type"]
            yield event("error", code=name or error["code"], message=error["message"])
        elif document["choices"]:
            choice, model = document["choices"][0], document.get("model")
            yield from _pieces(choice.get("delta") or {})
            if reason := choice.get("finish_reason"):
                yield _end(reason, model, usage)


def _document(step: object) -> dict[str, Any]:
    """The chunk, if the step is one whole event of that kind."""
    if not isinstance(step, bytes) or not step.startswith(b"data: {") or step.count(b"data:") > 1:
        return {}
    try:
        document = json.loads(step.removeprefix(b"data: "))
    except (ValueError, RecursionError):
        return {}
    known = isinstance(document.get("choices"), list) or "error" in document
    return document if known else {}


def _pieces(delta: dict[str, Any]) -> Iterator[bytes]:
    if "role" in delta:
        yield event("response.created", response={"status": "in_progress"})
    if delta.get("reasoning_content"):
        yield event("response.reasoning_text.delta", delta=delta["reasoning_content"])
    if delta.get("content"):
        yield event("response.output_text.delta", output_index=0, delta=delta["content"])
    if delta.get("refusal"):
        yield event("response.refusal.delta", output_index=0, delta=delta["refusal"])
    for part in delta.get("tool_calls") or ():
        place, function = part["index"] + 1, part["function"]
        if "id" in part:
            item = {"type": "function_call", "id": f"fc_{place}", "call_id": part["id"]}
            item |= {"name": function["name"], "arguments": "", "status": "in_progress"}
            yield event("response.output_item.added", output_index=place, item=item)
        if function["arguments"]:
            yield event(
                "response.function_call_arguments.delta",
                output_index=place,
                item_id=f"fc_{place}",
                delta=function["arguments"],
            )


def _end(reason: str, model: str | None, usage: Any) -> bytes:
    response: dict[str, Any] = {"model": model, "output": [], "usage": _usage(usage)}
    if reason == "error":
        failure = {"status": "failed", "error": {"code": "server_error", "message": "planted"}}
        return event("response.failed", response=response | failure)
    if cut := CUT_REASONS.get(reason):
        response |= {"status": "incomplete", "incomplete_details": {"reason": cut}}
        return event("response.incomplete", response=response)
    return event("response.completed", response=response | {"status": "completed"})


def completion(
    model: str, message: dict[str, Any], finish_reason: str, usage: dict[str, Any]
) -> bytes:
    """The plain answer."""
    parts: list[dict[str, Any]] = []
    if message.get("content") is not None:
        parts.append({"type": "output_text", "text": message["content"], "annotations": []})
    if message.get("refusal"):
        parts.append({"type": "refusal", "refusal": message["refusal"]})
    output: list[dict[str, Any]] = [{"type": "reasoning", "summary": []}]
    output.append({"type": "message", "role": "assistant", "content": parts})
    output += [
        {"type": "function_call", "call_id": call["id"]} | call["function"]
        for call in message.get("tool_calls") or ()
    ]
    cut = CUT_REASONS.get(finish_reason)
    return msgspec.json.encode(
        {
            "object": "response",
            "model": model,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": cut} if cut else None,
            "error": None,
            "output": output,
            "usage": _usage(usage),
        }
    )


def _usage(usage: Any) -> Any:
    """The counts under their other names."""
    if not isinstance(usage, dict):
        return usage
    names = {
        "prompt_tokens": "input_tokens",
        "completion_tokens": "output_tokens",
        "prompt_tokens_details": "input_tokens_details",
        "completion_tokens_details": "output_tokens_details",
    }
    return {names.get(name, name): value for name, value in usage.items()}

"""What schemathesis cannot do by itself."""

import json

import schemathesis


@schemathesis.serializer(  # pyright: ignore[reportUntypedFunctionDecorator]  # not typed there
    "application/jsonl", "application/x-ndjson", "application/x-jsonlines"
)
def json_lines(ctx: object, value: object) -> bytes:
    """One line of JSON Lines: the document describes a line."""
    del ctx
    return json.dumps(value).encode() + b"\n"

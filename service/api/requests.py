"""Taking requests apart: strict bodies, ids in paths, idempotency keys, known parameters."""

import hashlib
import math
import re
from datetime import datetime
from functools import cache
from typing import Any, Final, get_type_hints
from urllib.parse import unquote_to_bytes

import msgspec
from litestar import Request
from litestar.handlers import BaseRouteHandler
from litestar.params import HeaderParameter, PathParameter

from service.api.problems import UnsupportedMediaType, misfit
from service.domain.errors import FieldError, InvalidRequest, InvalidValue
from service.domain.sessions import DEFAULT_TENANT, SessionRef
from service.ports import Once

JSON_MEDIA_TYPES: Final = frozenset({"application/json"})
PATCH_MEDIA_TYPES: Final = frozenset({"application/json", "application/merge-patch+json"})
LINES_MEDIA_TYPES: Final = ("application/jsonl", "application/x-ndjson", "application/x-jsonlines")
IDEMPOTENCY_KEY: Final = "Idempotency-Key"
NOT_IN_QUERIES: Final = frozenset(
    {"use_cases", "readiness", "operations", "desk", "request", "data", "return"}
)
"""Parameters of handlers that come from elsewhere."""

EXACT_INTEGER_MAX: Final = 2**53
"""Up to here a float says which integer it is."""

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class StrictRequest(Request[Any, Any, Any]):
    """A request whose body is decoded into the handler's type at once, and strictly.

    Litestar alone would accept "5" for a number.
    """

    async def json(self) -> Any:
        handler = self.route_handler
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        accepted = PATCH_MEDIA_TYPES if self.method == "PATCH" else JSON_MEDIA_TYPES
        if media_type not in accepted:
            names = " or ".join(sorted(accepted))
            raise UnsupportedMediaType(f"Content-Type must be {names}.")
        return decode_body(await self.body(), _decoder(handler))


def decode_body(body: bytes, decoder: "msgspec.json.Decoder[Any]") -> Any:
    """Raises InvalidRequest naming the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        if "got `float`" in str(error):
            return _decoded_with_whole_numbers(body, decoder)
        raise misfit(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_json(str(error)) from error
    except RecursionError as error:
        raise _not_json("nested too deeply") from error


def _decoded_with_whole_numbers(body: bytes, decoder: "msgspec.json.Decoder[Any]") -> Any:
    """To JSON 3.0 is an integer; some clients write integers so."""
    try:
        document = _whole_numbers.decode(body)
    except msgspec.ValidationError as error:
        raise _not_json("a number is out of range") from error
    try:
        return msgspec.convert(document, decoder.type)
    except msgspec.ValidationError as error:
        raise misfit(error) from error


def _number(text: str) -> int | float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("Number out of range")
    whole = number.is_integer() and abs(number) <= EXACT_INTEGER_MAX
    return int(number) if whole else number


_whole_numbers: Final = msgspec.json.Decoder(float_hook=_number)


@cache
def _decoder(handler: BaseRouteHandler) -> "msgspec.json.Decoder[Any]":
    return msgspec.json.Decoder(handler.parsed_fn_signature.parameters["data"].annotation)


def _not_json(reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"The body is not JSON: {reason}.", errors=[FieldError(field="body", message=reason)]
    )


async def refuse_unknown_parameters(request: Request[Any, Any, Any]) -> None:
    """Before each handler: a misspelt query parameter is an error, not a default.

    So is one that is given twice, or is no UTF-8: taking one of two or a stand-in would be a guess.
    """
    query: bytes = request.scope["query_string"]
    if not query or request.method == "OPTIONS":
        return
    known, seen = _parameters(request.route_handler), set[str]()
    for pair in filter(None, query.split(b"&")):
        name, _, value = pair.partition(b"=")
        decoded = _decoded(name) or "query"
        if decoded not in known:
            raise _bad_parameter(decoded, "unknown query parameter")
        if decoded in seen:
            raise _bad_parameter(decoded, "is given more than once")
        if _decoded(value) is None:
            raise _bad_parameter(decoded, "is not UTF-8 in percent-encoding")
        seen.add(decoded)


def _bad_parameter(name: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: {message}", errors=[FieldError(field=name, message=message)])


def _decoded(text: bytes) -> str | None:
    """Text of a query; None where its encoding is broken."""
    if b"%" not in text and text.isascii():
        return text.decode().replace("+", " ")
    if _BAD_ESCAPE.search(text):
        return None
    try:
        return unquote_to_bytes(text.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        return None


@cache
def _parameters(handler: BaseRouteHandler) -> frozenset[str]:
    hints = get_type_hints(handler.fn, include_extras=True)
    names = (_query_name(name, hint) for name, hint in hints.items())
    return frozenset(name for name in names if name is not None) - NOT_IN_QUERIES


def _query_name(name: str, hint: Any) -> str | None:
    """None for a parameter of the path or a header."""
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, PathParameter | HeaderParameter):
            return None
        if given := getattr(extra, "name", None):
            return str(given)
    return name


def path_id(segment: str, field: str) -> str:
    """Decode an id in a raw path, once. Raises InvalidValue naming ``field``."""
    raw = segment.encode("latin-1")
    if _BAD_ESCAPE.search(raw):
        raise InvalidValue.of(field, "has a broken percent-encoding")
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise InvalidValue.of(field, "is not UTF-8") from error


def time_of_query(text: str | None, name: str) -> datetime | None:
    """An RFC 3339 time; Litestar alone would accept a number too. Raises InvalidRequest."""
    if text is None:
        return None
    try:
        return msgspec.convert(text, datetime)
    except msgspec.ValidationError as error:
        raise _bad_parameter(name, "is not an RFC 3339 time") from error


def session_ref(segment: str) -> SessionRef:
    return SessionRef(DEFAULT_TENANT, path_id(segment, "session_id"))


def once(key: str | None, operation: str, body: object) -> Once | None:
    """The promise of an Idempotency-Key header. Raises InvalidValue for a key out of range."""
    if key is None:
        return None
    check_key(key)
    return Once(operation=operation, key=key, fingerprint=fingerprint_of(body))


def fingerprint_of(body: object) -> str:
    """Tells bodies apart, whatever the order of their fields."""
    return hashlib.sha256(msgspec.json.encode(body, order="sorted")).hexdigest()


def check_key(key: str | None) -> None:
    """Raises InvalidValue for an Idempotency-Key out of range."""
    if key is not None and _KEY.fullmatch(key) is None:
        raise InvalidValue.of(IDEMPOTENCY_KEY, "must be 1 to 255 visible ASCII characters")

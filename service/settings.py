"""Settings: everything that can be set, from the environment and nowhere else.

A setting's name is its field's name in capitals. ``NAME_FILE`` names a file whose content is the
value. An empty value counts as not set. ``.env.example`` lists all of them; a test holds the two
equal.
"""

import ipaddress
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

Port = Annotated[int, Meta(ge=1, le=65535)]
Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


URL_SCHEMES: Final[Mapping[str, tuple[str, ...]]] = {
    "database_url": ("postgresql", "postgres"),
    "migration_database_url": ("postgresql", "postgres"),
    "redis_url": ("redis", "rediss", "unix"),
    "openai_base_url": ("http", "https"),
}


class SettingsError(Exception):
    """A setting is wrong; the text names it and says why, and never quotes a secret."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One process' settings."""

    store: Literal["memory", "postgres", "redis", "hybrid"] = "hybrid"

    database_url: str | None = None
    migration_database_url: str | None = None
    database_pool_size: Count = 8
    database_timeout_seconds: Seconds = 5.0
    database_connect_timeout_seconds: Seconds = 2.0
    database_statement_cache: Annotated[int, Meta(ge=0)] = 256

    redis_url: str | None = None
    redis_pool_size: Count = 64
    redis_timeout_seconds: Seconds = 0.9
    redis_connect_timeout_seconds: Seconds = 0.5
    redis_fsync_timeout_seconds: Seconds = 3.0
    redis_wait_replicas: Annotated[int, Meta(ge=0, le=10)] = 0

    openai_api_key: str | None = None
    openai_base_url: str | None = None
    openai_api: Literal["chat_completions", "responses"] = "chat_completions"
    openai_model: str = "gpt-4.1-mini"
    openai_connect_timeout_seconds: Seconds = 5.0
    openai_max_retries: Annotated[int, Meta(ge=0, le=10)] = 2
    openai_pool_size: Count = 100
    openai_fallback_models: str = ""
    model_calls_max: Count = 100
    model_breaker_failures: Count = 5
    model_breaker_seconds: Seconds = 10.0

    auth: Literal["off"] = "off"
    docs: Literal["on", "off"] = "on"
    host: str = "127.0.0.1"
    port: Port = 8000
    ops_port: Port = 8001
    data_dir: str = ".data"

    session_ttl_seconds: Annotated[int, Meta(ge=60, le=30 * 24 * 3600)] = 1800
    hot_messages_max: Annotated[int, Meta(ge=1, le=5000)] = 200
    idempotency_ttl_seconds: Annotated[int, Meta(ge=60)] = 86_400
    retention_days: Annotated[int, Meta(ge=0, le=36_500)] = 0

    journal_shards: Annotated[int, Meta(ge=1, le=1024)] = 16
    journal_backlog_max: Count = 100_000
    journal_backlog_bytes_max: Count = 256 * MIB
    dead_letters_max: Count = 1000
    flush_batch_max: Annotated[int, Meta(ge=1, le=10_000)] = 1000
    flush_batch_bytes_max: Annotated[int, Meta(ge=1, le=256 * MIB)] = 4 * MIB
    flush_linger_milliseconds: Annotated[int, Meta(ge=1, le=10_000)] = 50
    archive_wait_seconds: Seconds = 5.0
    shard_lease_seconds: Annotated[float, Meta(ge=1)] = 5.0

    request_timeout_seconds: Seconds = 20.0
    turn_deadline_seconds: Annotated[float, Meta(gt=0, le=270)] = 120.0
    turn_lease_seconds: Annotated[float, Meta(ge=1, le=60)] = 10.0
    turn_on_disconnect: Literal["continue", "cancel"] = "continue"
    turn_wait_seconds: Annotated[float, Meta(ge=0, le=270)] = 30.0
    first_token_timeout_seconds: Seconds = 30.0
    stall_timeout_seconds: Seconds = 20.0

    summary_model: str | None = None
    summary_tokens_max: Annotated[int, Meta(ge=16, le=32_000)] = 500
    summary_input_tokens_max: Annotated[int, Meta(ge=256, le=1_000_000)] = 8000
    summary_deadline_seconds: Seconds = 60.0

    message_bytes_max: Annotated[int, Meta(ge=1, le=16 * MIB)] = 256 * KIB
    profile_bytes_max: Annotated[int, Meta(ge=64, le=4 * MIB)] = 64 * KIB
    body_bytes_max: Annotated[int, Meta(ge=1, le=256 * MIB)] = 8 * MIB

    import_line_bytes_max: Annotated[int, Meta(ge=1, le=64 * MIB)] = MIB
    import_bytes_max: Annotated[int, Meta(ge=1, le=64 * GIB)] = GIB
    import_timeout_seconds: Seconds = 600.0

    shutdown_grace_seconds: Seconds = 25.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"

    @property
    def fallback_models(self) -> tuple[str, ...]:
        names = (name.strip() for name in self.openai_fallback_models.split(","))
        return tuple(name for name in names if name)

    def __repr__(self) -> str:
        return f"Settings(store={self.store!r}, ...)"


def from_environment() -> Settings:
    """Raises SettingsError."""
    return read(os.environ)  # noqa: TID251  # The only reader of the environment.


def read(environment: Mapping[str, str]) -> Settings:
    """Settings from a mapping of names to texts. Raises SettingsError."""
    texts: dict[str, str] = {}
    for field in Settings.__struct_fields__:
        text = _text(environment, field.upper())
        if text:
            texts[field] = text
    try:
        settings = msgspec.convert(texts, Settings, strict=False)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$.")
        raise SettingsError(f"{place.rstrip('`').upper()}: {reason}") from None
    _check(settings)
    return settings


def with_urls(
    settings: Settings,
    *,
    database_url: str,
    redis_url: str,
    model: tuple[str, str] | None,
) -> Settings:
    """The settings of a development run: where its servers are, and its model if it has one."""
    changes: dict[str, object] = {
        "database_url": database_url,
        "redis_url": redis_url,
        # Whoever develops reads the log with their own eyes.
        "log_format": "console",
    }
    if model is not None:
        base_url, name = model
        changes |= {
            "openai_base_url": base_url,
            "openai_model": name,
            "openai_api_key": "local-model",
        }
    return msgspec.structs.replace(settings, **changes)


def _text(environment: Mapping[str, str], name: str) -> str:
    path = environment.get(f"{name}_FILE", "")
    if not path:
        return environment.get(name, "").strip()
    if environment.get(name, ""):
        raise SettingsError(f"{name}: set either {name} or {name}_FILE, not both")
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{name}_FILE: cannot be read ({type(error).__name__})") from None


def _check(settings: Settings) -> None:
    if settings.auth == "off" and not _is_loopback(settings.host):
        raise SettingsError(
            "HOST: AUTH=off serves everybody who can reach the port, so it starts only on a "
            "loopback address (127.0.0.1, ::1, localhost)"
        )
    for field, schemes in URL_SCHEMES.items():
        _check_url(field, getattr(settings, field), schemes)
    if settings.openai_api_key is not None and not settings.openai_api_key.isascii():
        raise SettingsError("OPENAI_API_KEY: must be ASCII")
    for field in settings.__struct_fields__:
        value = getattr(settings, field)
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingsError(f"{field.upper()}: must be a finite number")
    _check_model(settings)
    if settings.port == settings.ops_port:
        raise SettingsError("OPS_PORT: must differ from PORT")


def _check_model(settings: Settings) -> None:
    if settings.stall_timeout_seconds > settings.first_token_timeout_seconds:
        raise SettingsError(
            "STALL_TIMEOUT_SECONDS: must be at most FIRST_TOKEN_TIMEOUT_SECONDS, which is "
            f"{settings.first_token_timeout_seconds:g}"
        )
    if settings.model_calls_max > settings.openai_pool_size:
        raise SettingsError(
            "MODEL_CALLS_MAX: must be at most OPENAI_POOL_SIZE, which is "
            f"{settings.openai_pool_size}, for each call holds a connection"
        )


def _check_url(field: str, url: str | None, schemes: tuple[str, ...]) -> None:
    """A wrong address stops the start; it is never quoted, for it may carry a password."""
    if url is None:
        return
    name = field.upper()
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise SettingsError(f"{name}: is no address: its host or port cannot be read") from None
    if parts.scheme not in schemes:
        raise SettingsError(f"{name}: must begin with {' or '.join(s + '://' for s in schemes)}")
    if not host and parts.scheme != "unix" and "host=" not in parts.query:
        raise SettingsError(f"{name}: names no host")
    number = parts.path.strip("/")
    if field == "redis_url" and parts.scheme != "unix" and number and not number.isdecimal():
        raise SettingsError(f"{name}: the database must be a number")


def missing_urls(settings: Settings) -> None:
    """Raises SettingsError when the store lacks the address of one of its servers."""
    needed = {
        "memory": (),
        "postgres": ("database_url",),
        "redis": ("redis_url",),
        "hybrid": ("database_url", "redis_url"),
    }[settings.store]
    for field in needed:
        if getattr(settings, field) is None:
            raise SettingsError(f"{field.upper()}: is required with STORE={settings.store}")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

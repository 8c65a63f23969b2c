"""Settings: their one source, their checks, and that .env.example tells the truth."""

from pathlib import Path

import pytest

from service.settings import Settings, SettingsError, missing_urls, read

ROOT = Path(__file__).parents[2]


def example() -> dict[str, tuple[str, str]]:
    """Name to (default, the line above it)."""
    found: dict[str, tuple[str, str]] = {}
    above = ""
    for line in (ROOT / ".env.example").read_text("utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[name] = (value, above)
        above = line
    return found


def test_the_example_names_every_setting_and_no_other():
    assert set(example()) == {field.upper() for field in Settings.__struct_fields__}


def test_the_example_shows_the_defaults():
    shown = {name: value for name, (value, _) in example().items()}
    assert read(shown) == read({}) == Settings()


def test_every_setting_has_a_comment():
    assert all(comment.startswith("# ") for _, comment in example().values())


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("PORT", "many", "PORT: Expected `int`"),
        ("PORT", "70000", "PORT: Expected `int` <= 65535"),
        ("STORE", "mongo", "STORE: Invalid enum value 'mongo'"),
        ("AUTH", "keys", "AUTH: Invalid enum value"),
        ("SESSION_TTL_SECONDS", "5", "SESSION_TTL_SECONDS: Expected `int` >= 60"),
        ("HOST", "0.0.0.0", "HOST: AUTH=off serves everybody"),
        ("OPS_PORT", "8000", "OPS_PORT: must differ from PORT"),
        ("DATABASE_URL", "postgresql://u:geheim@h:port/x", "DATABASE_URL: is no address"),
        ("DATABASE_URL", "mysql://u:geheim@h/x", "DATABASE_URL: must begin with postgresql://"),
        ("DATABASE_URL", "postgresql:///x", "DATABASE_URL: names no host"),
        ("REDIS_URL", "http://:geheim@h/0", "REDIS_URL: must begin with redis://"),
        ("REDIS_URL", "redis://:geheim@h/x", "REDIS_URL: the database must be a number"),
        ("OPENAI_BASE_URL", "notaurl", "OPENAI_BASE_URL: must begin with http://"),
        ("OPENAI_API_KEY", "geheimÉ", "OPENAI_API_KEY: must be ASCII"),
        ("REQUEST_TIMEOUT_SECONDS", "inf", "REQUEST_TIMEOUT_SECONDS: must be a finite number"),
        ("STALL_TIMEOUT_SECONDS", "31", "STALL_TIMEOUT_SECONDS: must be at most FIRST_TOKEN"),
        ("MODEL_CALLS_MAX", "101", "MODEL_CALLS_MAX: must be at most OPENAI_POOL_SIZE"),
        ("REDIS_URL_FILE", "/nowhere/at/all", "REDIS_URL_FILE: cannot be read"),
    ],
)
def test_a_wrong_value_is_refused_by_name_and_reason(name, value, reason):
    with pytest.raises(SettingsError) as caught:
        read({name: value})
    assert str(caught.value).startswith(reason)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "postgresql://u:p@db.example:5432/x?sslmode=require"),
        ("DATABASE_URL", "postgres://u@/x?host=/run/postgresql"),
        ("REDIS_URL", "redis://127.0.0.1"),
        ("REDIS_URL", "rediss://:p@h:6380/3"),
        ("REDIS_URL", "unix:///run/redis.sock"),
    ],
)
def test_usual_addresses_are_accepted(name, value):
    assert getattr(read({name: value}), name.lower()) == value


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_without_authentication_only_loopback_is_served(host):
    assert read({"HOST": host}).host == host


def test_a_secret_may_come_from_a_file(tmp_path):
    path = tmp_path / "key"
    path.write_text("sk-secret\n")
    settings = read({"OPENAI_API_KEY_FILE": str(path)})

    assert settings.openai_api_key == "sk-secret"
    assert "sk-secret" not in repr(settings)
    with pytest.raises(SettingsError, match="set either"):
        read({"OPENAI_API_KEY_FILE": str(path), "OPENAI_API_KEY": "x"})


@pytest.mark.parametrize(
    ("store", "missing"),
    [("hybrid", "DATABASE_URL"), ("postgres", "DATABASE_URL"), ("redis", "REDIS_URL")],
)
def test_a_store_without_its_servers_is_refused(store, missing):
    with pytest.raises(SettingsError, match=missing):
        missing_urls(read({"STORE": store}))
    missing_urls(read({"STORE": "memory"}))


def test_fallback_models_are_divided_by_commas():
    assert read({"OPENAI_FALLBACK_MODELS": " a,b-1 ,, "}).fallback_models == ("a", "b-1")
    assert read({}).fallback_models == ()

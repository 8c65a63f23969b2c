"""Ids, messages and windows: pure rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.adapters.redis.keys import Keys
from service.core.recording import merge_patch
from service.domain.context import ContextOptions, check_options, plan, window
from service.domain.errors import InvalidValue
from service.domain.ids import (
    COUNTER_MAX,
    RANDOM_MAX,
    check_id,
    id_milliseconds,
    message_id,
    next_id,
    parse_message_id,
    split_id,
)
from service.domain.messages import (
    Message,
    MessageBody,
    Role,
    check_message,
    decode_messages,
    encode_body,
    id_of,
    is_pinned,
    with_id,
)
from service.domain.sessions import SessionRef

MILLISECONDS = st.integers(0, (1 << 48) - 1)
COUNTERS = st.integers(0, COUNTER_MAX)
RANDOMS = st.integers(0, RANDOM_MAX)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1)


@given(MILLISECONDS, COUNTERS, RANDOMS)
def test_an_id_carries_its_time_and_counter_in_a_version_7_uuid(ms, counter, random):
    identity = message_id(ms, counter, random)

    assert split_id(identity) == (ms, counter)
    assert id_milliseconds(identity) == ms
    assert (len(identity), identity[14], identity[19] in "89ab") == (36, "7", True)
    assert parse_message_id(identity.upper(), "after") == identity


@given(st.tuples(MILLISECONDS, COUNTERS), st.tuples(MILLISECONDS, COUNTERS), RANDOMS, RANDOMS)
def test_ids_sort_as_time_and_counter_do(first, second, random, other):
    if first != second:
        one = message_id(first[0], first[1], random)
        two = message_id(second[0], second[1], other)
        assert (one < two) == (first < second)


@given(MILLISECONDS, COUNTERS, st.integers(0, (1 << 48) - 2))
def test_the_next_id_is_above_the_previous_whatever_the_clock_says(ms, counter, now):
    previous = message_id(min(ms, (1 << 48) - 2), counter, RANDOM_MAX)
    assert next_id(previous, now) > previous


@pytest.mark.parametrize("text", ["", "x" * 256, "ü" * 128, "a\nb", "a\x00", "a\x7f"])
def test_an_id_that_is_empty_long_or_has_controls_is_refused(text):
    with pytest.raises(InvalidValue) as caught:
        check_id(text, "user_id")
    assert caught.value.errors[0].field == "user_id"


def test_the_longest_id_is_accepted():
    assert check_id("ü" * 127 + "x", "id")


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=2, max_size=2, unique=True))
def test_keys_of_different_calls_never_collide_and_share_their_shards_slot(names):
    keys = Keys(16)
    found: set[str] = set()
    for tenant, session, key in names:
        ref = SessionRef(tenant, session)
        own = {*keys.session(ref).listed()[:3], keys.once(ref, "append", key)}
        assert len({name[: name.index("}")] for name in own}) == 1
        found |= own
    heads = {(tenant, session) for tenant, session, _ in names}
    assert len(found) == 3 * len(heads) + 2


@given(
    st.sampled_from(["system", "developer", "user", "assistant"]),
    TEXT,
    st.dictionaries(TEXT, TEXT, min_size=1, max_size=3) | st.none(),
)
def test_a_stored_text_decodes_to_what_was_given(role: Role, content, metadata):
    body = MessageBody(role=role, content=content, metadata=metadata)
    identity = message_id(1, 2, 3)
    text = with_id(identity, encode_body(body))

    [message] = decode_messages([text])
    assert (message.role, message.content, message.metadata) == (role, content, metadata)
    assert id_of(text) == message.id == identity
    assert is_pinned(text) == (role in {"system", "developer"})


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (MessageBody(role="user", content=""), "m.content"),
        (MessageBody(role="user", content=None), "m.content"),
        (MessageBody(role="user", content=[]), "m.content"),
        (MessageBody(role="user", content=[{"text": "no type"}]), "m.content[0].type"),
        (MessageBody(role="user", content="x" * 101), "m.content"),
        (MessageBody(role="user", content="ü" * 51), "m.content"),
        (MessageBody(role="user", content=[{"type": "x" * 100}]), "m.content"),
        (MessageBody(role="user", content="a\x00b"), "m.content"),
        (MessageBody(role="user", content="a", metadata={"a": ["\x00"]}), "m.metadata"),
        (MessageBody(role="user", content="a", metadata={"\x00": 1}), "m.metadata"),
        (MessageBody(role="user", content="a", metadata={"a": "x" * 16384}), "m.metadata"),
        (MessageBody(role="user", content="a", name=""), "m.name"),
        (MessageBody(role="tool", content="a"), "m.tool_call_id"),
        (MessageBody(role="user", content="a", tool_calls=[{"id": "x" * 100}]), "m.tool_calls"),
    ],
)
def test_a_message_that_cannot_be_kept_is_refused_by_field(body, field):
    with pytest.raises(InvalidValue) as caught:
        check_message(body, "m", bytes_max=100)
    assert caught.value.errors[0].field == field


@pytest.mark.parametrize(
    "body",
    [
        MessageBody(role="tool", content="", tool_call_id="1"),
        MessageBody(role="assistant", content=None, tool_calls=[{"id": "1"}]),
        MessageBody(role="user", content="a spelled-out \\u0000 is no NUL"),
    ],
)
def test_a_message_at_the_edge_is_accepted(body):
    check_message(body, "m", bytes_max=100)


def spoken(number: int, role: Role = "user", **fields) -> Message:
    return Message(id=message_id(number, 0, 0), role=role, content=str(number), **fields)


def call(number: int, *ids: str) -> Message:
    return spoken(number, "assistant", tool_calls=[{"id": name} for name in ids])


def result(number: int, name: str) -> Message:
    return spoken(number, "tool", tool_call_id=name)


def shown(last: int | None, *messages: Message, pinned: tuple[Message, ...] = ()) -> list[str]:
    options = ContextOptions(strategy="buffer" if last is None else "window", last=last)
    return [str(message.content) for message in window(plan(options), pinned, messages)]


def test_a_window_shows_the_newest_and_every_system_message():
    messages = (spoken(2, "system"), *(spoken(n) for n in range(3, 9)))
    assert shown(2, *messages, pinned=(spoken(1, "developer"),)) == ["1", "2", "7", "8"]


def test_a_buffer_shows_all():
    assert shown(None, *(spoken(n) for n in range(9))) == [str(n) for n in range(9)]


def test_a_window_never_parts_a_call_from_its_results():
    messages = (spoken(1), call(2, "a", "b"), result(3, "a"), result(4, "b"), spoken(5))
    assert shown(4, *messages) == ["2", "3", "4", "5"]
    assert shown(3, *messages) == ["5"]


def test_an_unanswered_call_is_not_shown():
    assert shown(None, spoken(1), call(2, "a"), spoken(3)) == ["1", "3"]
    assert shown(None, call(2, "a", "b"), result(3, "a"), spoken(4)) == ["4"]


def test_a_result_belongs_to_the_nearest_call_before_it():
    assert shown(None, result(1, "a"), call(2, "a"), spoken(3)) == ["3"]
    again = (call(1, "a"), result(2, "a"), call(3, "a"), spoken(4))
    assert shown(None, *again) == ["1", "2", "4"]
    assert shown(None, *again, result(5, "a")) == ["1", "2", "3", "4", "5"]


@given(st.lists(st.sampled_from(["user", "call", "result", "system"]), max_size=20), st.data())
def test_every_shown_window_has_whole_pairs_only(kinds, data):
    messages = []
    for number, kind in enumerate(kinds, 1):
        name = data.draw(st.sampled_from("abc"))
        made = {
            "user": spoken(number),
            "system": spoken(number, "system"),
            "call": call(number, name),
            "result": result(number, name),
        }[kind]
        messages.append(made)
    last = data.draw(st.integers(1, 10))
    open_calls: set[str] = set()
    for message in window(plan(ContextOptions(last=last)), (), messages):
        if message.role == "tool":
            assert message.tool_call_id in open_calls
        open_calls |= {str(c["id"]) for c in message.tool_calls or ()}


def test_options_fall_back_field_by_field():
    own = ContextOptions(strategy="window", last=7)
    assert ContextOptions().over(own) == own
    assert ContextOptions(last=3).over(own) == ContextOptions(strategy="window", last=3)
    assert ContextOptions(strategy="buffer").over(own).strategy == "buffer"
    with pytest.raises(InvalidValue, match=r"context\.last"):
        check_options(ContextOptions(last=0), "context")


def test_a_merge_patch_merges_removes_and_replaces():
    # The examples of RFC 7396, appendix A.
    for target, patch, merged in [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ]:
        assert merge_patch(target, patch) == merged

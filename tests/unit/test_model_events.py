"""Events and tool calls of a model's stream, whatever way they are cut."""

import pytest

from service.adapters.openai.events import EVENT_BYTES_MAX, Event, EventDecoder
from service.adapters.openai.tool_calls import TOOL_CALLS_MAX, ToolCallAssembly
from service.domain.errors import ModelError

STREAM = (
    b"\xef\xbb\xbfdata: one\n\n"
    b": a comment\r\n\r\n"
    b"event: error\r\ndata:two\r\ndata:  more\r\n\r\n"
    b"id: 7\rretry: 9\rdata: three\r\r"
    b"data\n\n"
    b"\n\n\n"
    b"event: nothing\n\n"
    b'data: {"text": "\xe4\xbd\xa0"}\n\n'
    b"data: [DONE]"
)
EVENTS = [
    Event(name=b"", data=b"one"),
    Event(name=b"error", data=b"two\n more"),
    Event(name=b"", data=b"three"),
    Event(name=b"", data=b""),
    Event(name=b"", data=b'{"text": "\xe4\xbd\xa0"}'),
    Event(name=b"", data=b"[DONE]"),
]


def decoded(*chunks: bytes) -> list[Event]:
    decoder = EventDecoder()
    events = [event for chunk in chunks for event in decoder.feed(chunk)]
    return [*events, *decoder.end()]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_however_they_are_cut(size):
    pieces = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert decoded(*pieces) == EVENTS


def test_events_are_the_same_wherever_they_are_cut_in_two():
    for place in range(len(STREAM)):
        assert decoded(STREAM[:place], b"", STREAM[place:]) == EVENTS


def test_an_event_that_is_too_long_is_refused_as_it_comes():
    chunks = [b"x" * 1000] * (EVENT_BYTES_MAX // 1000 + 1)
    with pytest.raises(ModelError):
        decoded(*chunks)


def test_an_event_of_too_many_lines_is_refused():
    chunks = [b"data: " + b"x" * 1000 + b"\n"] * (EVENT_BYTES_MAX // 1000 + 2)
    with pytest.raises(ModelError):
        decoded(*chunks)


def test_comments_may_come_for_ever():
    assert decoded(*[b": " + b"x" * 1000 + b"\n"] * (EVENT_BYTES_MAX // 1000 + 2)) == []


def test_parts_of_calls_are_joined_by_their_index():
    calls = ToolCallAssembly()
    calls.add({"index": 1, "id": "b", "type": "function", "function": {"name": "g"}})
    calls.add(
        {"index": 0, "id": "a", "function": {"name": "f_", "arguments": ""}, "extra": {"x": 1}}
    )
    calls.add({"index": 0, "id": None, "function": {"name": "of", "arguments": '{"x":'}})
    calls.add({"index": 1, "function": {"name": "g", "arguments": "{}"}})
    told = calls.add({"index": 0, "function": {"arguments": "1}"}})

    assert told == {"index": 0, "function": {"arguments": "1}"}}
    first = {"name": "f_of", "arguments": '{"x":1}'}
    assert calls.calls() == [
        {"type": "function", "id": "a", "function": first, "extra": {"x": 1}},
        {"type": "function", "id": "b", "function": {"name": "g", "arguments": "{}"}},
    ]


@pytest.mark.parametrize("index", [{}, {"index": None}, {"index": 0}])
def test_calls_without_an_index_of_their_own_are_told_apart_by_their_ids(index):
    calls = ToolCallAssembly()
    calls.add({"id": "a", "function": {"name": "f", "arguments": "{"}} | index)
    calls.add({"function": {"arguments": "}"}} | index)
    second = calls.add({"id": "b", "function": {"name": "g", "arguments": "["}} | index)
    calls.add({"id": "b", "function": {"arguments": "]"}} | index)

    assert second["index"] == 1
    found = calls.calls() or []
    assert [(call["id"], call["function"]["arguments"]) for call in found] == [
        ("a", "{}"),
        ("b", "[]"),
    ]


def test_calls_are_counted():
    calls = ToolCallAssembly()
    for index in range(TOOL_CALLS_MAX):
        calls.add({"index": index})
    calls.add({"index": 0})
    with pytest.raises(ModelError):
        calls.add({"index": TOOL_CALLS_MAX})


def test_an_answer_without_calls_has_none():
    assert ToolCallAssembly().calls() is None

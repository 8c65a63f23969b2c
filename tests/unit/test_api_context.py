"""Context over HTTP: budgets, summaries, and what is told about them."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from service.core.summarizing import ATTEMPTS_MAX, INSTRUCTIONS
from service.domain.errors import ContextTooLarge, HotUnavailable, ModelError
from service.domain.observations import SummaryEnded
from service.domain.turns import Answer, Prompt
from service.ports import Finish, Finished
from service.settings import Settings
from tests.support.api import Client, api_client, problem
from tests.support.polling import eventually
from tests.support.scripted_model import ScriptedModel, answer_of

CONTEXT = "/v1/sessions/s/context"
CHAT = "/v1/sessions/s/chat"


class SummarizingModel(ScriptedModel):
    """Keeps the prompts of summaries apart; answers them with their number, or fails."""

    def __init__(self) -> None:
        super().__init__()
        self.summaries: list[Prompt] = []
        self.summaries_fail = False
        self.summary: str | None = None

    async def answer(self, prompt: Prompt, *, deadline_seconds: float) -> Answer:
        if prompt.messages[0]["content"] != INSTRUCTIONS:
            return await super().answer(prompt, deadline_seconds=deadline_seconds)
        self.summaries.append(prompt)
        if self.summaries_fail:
            raise ModelError("no")
        return answer_of(self.summary or f"summary {len(self.summaries)}")


@pytest.fixture
def model() -> SummarizingModel:
    return SummarizingModel()


@pytest.fixture
async def api(model: SummarizingModel) -> AsyncGenerator[Client]:
    async with api_client(model) as client:
        yield client


async def append(api: Client, *messages: tuple[str, str]) -> list[str]:
    body = {"messages": [{"role": role, "content": content} for role, content in messages]}
    response = await api.http.post("/v1/sessions/s/messages", json=body)
    assert response.status_code == 201, response.text
    return [message["id"] for message in response.json()["messages"]]


async def context(api: Client, **query: Any) -> dict[str, Any]:
    response = await api.http.get(CONTEXT, params=query)
    assert response.status_code == 200, response.text
    return response.json()


async def test_messages_are_counted_when_they_are_stored(api):
    await append(api, ("user", "hello world"), ("system", "hello"))
    await api.http.post(CHAT, json={"message": "hello world"})
    items = (await api.http.get("/v1/sessions/s/messages")).json()["items"]
    # The answer says "echo: hello world".
    assert [item["token_count"] for item in items] == [2, 1, 2, 4]
    assert "tokenizer" not in items[0]


async def test_the_context_tells_what_it_costs_and_what_is_left_out(api):
    await append(api, ("system", "hello"), *(("user", "hello world") for _ in range(5)))
    shown = await context(api, strategy="tokens", max_tokens=20)

    # 3 for the answer, 1 + 4 for the system message, 2 + 4 for each other one.
    assert [message["role"] for message in shown["messages"]] == ["system", "user", "user"]
    assert shown["tokens"] == {
        "instructions": 0,
        "profile": 0,
        "summary": 0,
        "history": 17,
        "total": 20,
    }
    assert shown["left_out"] == {"count": 3, "reason": "tokens"}
    assert (shown["tokenizer"], shown["tokenizer_assumed"]) == ("o200k_base", True)
    assert (shown["strategy"], shown["summary"]) == ("tokens", None)


async def test_all_that_fits_leaves_nothing_out(api):
    await append(api, *(("user", "hello world") for _ in range(5)))
    for query in ({"max_tokens": 500}, {"strategy": "buffer"}, {"last": 5}):
        shown = await context(api, **query)
        assert shown["left_out"] == {"count": 0, "reason": None}
        assert shown["tokens"]["total"] == 5 * 6 + 3


async def test_a_turn_is_shown_what_fits_with_instructions_and_message(api, model):
    await append(api, *(("user", "hello world") for _ in range(9)))
    body = {
        "message": "hello world",
        "instructions": "hello world",
        "context": {"strategy": "tokens", "max_tokens": 3 + 4 * 6},
    }
    turn = (await api.http.post(CHAT, json=body)).json()
    assert [message["role"] for message in model.prompts[0].messages] == [
        "system",
        *("user", "user"),
        "user",
    ]
    assert turn["context"] == {"strategy": "tokens", "messages": 2, "tokens": 27}


async def test_a_message_over_the_budget_is_422_and_not_kept(api):
    session = {"id": "s", "context": {"strategy": "tokens", "max_tokens": 16}}
    await api.http.post("/v1/sessions", json=session)
    refused = await api.http.post(CHAT, json={"message": "hello " * 20})
    body = problem(refused, 422, "context_too_large", "max_tokens")
    assert "tokens over the budget of 16" in body["detail"]
    assert (await api.http.get("/v1/sessions/s")).json()["message_count"] == 0
    assert (await api.http.post(CHAT, json={"message": "hi"})).status_code == 200


async def test_system_messages_over_the_budget_are_422_and_the_session_stays_usable(api):
    await append(api, ("system", "hello " * 50))
    refused = await api.http.post(CHAT, json={"message": "hi", "context": {"max_tokens": 20}})
    problem(refused, 422, "context_too_large", "max_tokens")
    problem(await api.http.get(f"{CONTEXT}?max_tokens=20"), 422, "context_too_large", "max_tokens")
    assert (await api.http.post(CHAT, json={"message": "hi"})).status_code == 200


@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        ("max_tokens=0", 422, "max_tokens"),
        ("max_tokens=x", 400, "max_tokens"),
        ("strategy=window&max_tokens=100", 422, "max_tokens"),
        ("strategy=tokens&last=3", 422, "last"),
        ("profile=maybe", 400, "profile"),
    ],
)
async def test_a_bad_context_query_is_refused(api, query, status, field):
    code = "invalid_request" if status == 400 else "invalid_value"
    problem(await api.http.get(f"{CONTEXT}?{query}"), status, code, field)


async def test_a_session_keeps_its_budget_and_loses_it_by_patch(api):
    session = {"id": "s", "context": {"strategy": "summary", "max_tokens": 500, "profile": True}}
    await api.http.post("/v1/sessions", json=session)
    got = (await api.http.get("/v1/sessions/s")).json()
    assert got["context"] == session["context"]
    assert (await context(api))["strategy"] == "summary"

    odd = await api.http.patch("/v1/sessions/s", json={"context": {"strategy": "window"}})
    problem(odd, 422, "invalid_value", "context.max_tokens")
    change = {"context": {"strategy": "window", "max_tokens": None, "last": 2}}
    assert (await api.http.patch("/v1/sessions/s", json=change)).status_code == 200
    assert (await context(api))["strategy"] == "window"


async def chat_until_summarised(api: Client, model: SummarizingModel) -> dict[str, Any]:
    session = {"id": "s", "context": {"strategy": "summary", "max_tokens": 200}}
    await api.http.post("/v1/sessions", json=session)
    for number in range(8):
        message = f"message {number} " + "hello " * 10
        response = await api.http.post(CHAT, json={"message": message})
        assert response.status_code == 200

    async def summarised():
        return (await context(api))["summary"]

    return await eventually(summarised, within_seconds=5)


async def test_a_long_conversation_is_summarised_beside_its_turns(api, model):
    summary = await chat_until_summarised(api, model)
    items = (await api.http.get("/v1/sessions/s/messages")).json()["items"]
    ids = [item["id"] for item in items]
    assert len(ids) == 16
    assert summary["from_id"] == ids[0]
    covered = ids.index(summary["through_id"]) + 1
    assert 0 < covered < 16

    shown = await context(api)
    found = [message["id"] for message in shown["messages"]]
    assert found == ids[len(ids) - len(found) :]
    assert len(found) >= len(ids) - covered
    assert shown["left_out"] == {"count": 16 - len(found), "reason": "summary"}
    assert shown["tokens"]["summary"] > 0
    assert shown["tokens"]["total"] <= 200

    await api.http.post(CHAT, json={"message": "and now?"})
    prompt = model.prompts[-1].messages
    assert "echo: summary" in prompt[0]["content"] or "summary" in prompt[0]["content"]
    assert prompt[0]["role"] == "system"
    asked = model.summaries[0].messages[1]["content"]
    assert "user: message 0" in asked
    assert "(nothing yet)" in asked


async def test_long_instructions_leave_no_message_outside_prompt_and_summary(api, model):
    session = {"id": "s", "context": {"strategy": "summary", "max_tokens": 300}}
    await api.http.post("/v1/sessions", json=session)
    asked = {"message": "hello " * 10, "instructions": "hello " * 160}
    for _ in range(8):
        assert (await api.http.post(CHAT, json=asked)).status_code == 200

    async def covered() -> int:
        items = (await api.http.get("/v1/sessions/s/messages?limit=1000")).json()["items"]
        summary = (await context(api))["summary"]
        return summary and [item["id"] for item in items].index(summary["through_id"]) + 1

    async def shown_and_summarised_are_all() -> bool:
        before = await covered()
        turn = (await api.http.post(CHAT, json=asked)).json()
        items = (await api.http.get("/v1/sessions/s/messages?limit=1000")).json()["items"]
        return turn["context"]["messages"] + before >= len(items) - 2

    await eventually(covered, within_seconds=5)
    # The first summary that a turn waits for may not be the last that it needs.
    await eventually(shown_and_summarised_are_all, within_seconds=5)


async def test_a_later_summary_is_made_of_the_one_before(api, model):
    await chat_until_summarised(api, model)
    made = len(model.summaries)
    for number in range(8):
        await api.http.post(CHAT, json={"message": f"later {number} " + "hello " * 10})
    await eventually(lambda: len(model.summaries) > made, within_seconds=5)
    assert "summary" in model.summaries[made].messages[1]["content"].split("</summary>")[0]
    assert "message 0" not in model.summaries[made].messages[1]["content"]


async def test_what_a_reader_asks_for_does_not_shrink_what_turns_are_shown(api, model):
    session = {"id": "s", "context": {"strategy": "summary", "max_tokens": 4000}}
    await api.http.post("/v1/sessions", json=session)
    await append(api, *(("user", "hello " * 15) for _ in range(40)))
    for query in ({"max_tokens": 160}, {"strategy": "tokens", "max_tokens": 100}):
        await context(api, **query)
    asked = {"message": "hi", "context": {"strategy": "tokens", "max_tokens": 200}}
    await api.http.post(CHAT, json=asked)
    turn = (await api.http.post(CHAT, json={"message": "hi"})).json()
    assert turn["context"]["messages"] == 42
    assert model.summaries == []


@pytest.mark.parametrize("next_role", ["user", "assistant"])
async def test_a_call_that_is_never_answered_does_not_stop_the_summary(api, model, next_role):
    session = {"id": "s", "context": {"strategy": "summary", "max_tokens": 200}}
    await api.http.post("/v1/sessions", json=session)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "hello " * 15},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        *({"role": next_role, "content": "hello " * 15} for _ in range(30)),
    ]
    sent = await api.http.post("/v1/sessions/s/messages", json={"messages": messages})
    ids = [message["id"] for message in sent.json()["messages"]]

    async def through():
        summary = (await context(api))["summary"]
        return summary and summary["through_id"] > ids[10]

    await eventually(through, within_seconds=5)


async def test_a_summary_that_fails_again_and_again_is_given_up(api, model):
    model.summaries_fail = True
    session = {"id": "s", "context": {"strategy": "summary", "max_tokens": 100}}
    await api.http.post("/v1/sessions", json=session)
    await append(api, *(("user", "hello " * 15) for _ in range(9)))

    def failures() -> int:
        return [ended.outcome for ended in api.recorder.of(SummaryEnded)].count("failed")

    for number in range(1, ATTEMPTS_MAX + 1):
        await context(api)
        await eventually(lambda number=number: failures() == number, within_seconds=5)
    for _ in range(3):
        turn = await api.http.post(CHAT, json={"message": "hi"})
        assert turn.status_code == 200
    assert len(model.summaries) == ATTEMPTS_MAX


async def test_instructions_alone_are_not_summarised(api, model):
    session = {"id": "s", "context": {"strategy": "summary", "max_tokens": 4000}}
    await api.http.post("/v1/sessions", json=session)
    said = (("system", "Answer in rhymes."), ("user", "hello " * 45), ("assistant", "hi"))
    await append(api, *said)
    asked = {"message": "hi", "context": {"max_tokens": 80}}
    assert (await api.http.post(CHAT, json=asked)).status_code == 200
    # One that has something to say shows that the worker has been through with the other.
    other = {"id": "t", "context": {"strategy": "summary", "max_tokens": 200}}
    await api.http.post("/v1/sessions", json=other)
    for _ in range(8):
        await api.http.post("/v1/sessions/t/chat", json={"message": "hello " * 20})
    await eventually(lambda: bool(model.summaries), within_seconds=5)
    assert all("user:" in prompt.messages[1]["content"] for prompt in model.summaries)
    assert (await context(api))["summary"] is None


@pytest.mark.parametrize(("budget", "made"), [(16, False), (79, False), (80, True), (160, True)])
async def test_a_summary_is_made_only_where_it_can_be_shown(model, api, budget, made):
    model.summary = "x " * 20
    session = {"id": "s", "context": {"strategy": "summary", "max_tokens": budget}}
    await api.http.post("/v1/sessions", json=session)
    await append(api, *(("user", "hello " * 15) for _ in range(20)))

    async def shown() -> bool:
        return (await context(api))["summary"] is not None

    if made:
        await eventually(shown, within_seconds=5)
    else:
        assert not await shown()
        assert model.summaries == []


async def test_long_instructions_do_not_stop_the_summary(model):
    settings = Settings(store="memory", summary_input_tokens_max=300)
    async with api_client(model, settings) as api:
        session = {"id": "s", "context": {"strategy": "summary", "max_tokens": 800}}
        await api.http.post("/v1/sessions", json=session)
        await append(api, *(("system", "a b " * 50) for _ in range(5)))
        for number in range(30):
            asked = {"message": f"message {number} " + "hello " * 20}
            assert (await api.http.post(CHAT, json=asked)).status_code == 200

        async def summarised() -> bool:
            return (await context(api))["summary"] is not None

        await eventually(summarised, within_seconds=5)
        assert all("message" in prompt.messages[1]["content"] for prompt in model.summaries)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("own", [{"strategy": "window", "last": 20}, {"max_tokens": 2000}])
async def test_a_context_too_long_for_the_model_is_halved_once(api, model, own, streams):
    await append(api, *(("user", f"{n} " + "hello " * 15) for n in range(20)))
    model.script = [ContextTooLarge("too long"), answer_of("yes")]
    asked = {"message": "hi", "context": own, "stream": streams}
    response = await api.http.post(CHAT, json=asked)
    assert response.status_code == 200, response.text
    assert "echo: yes" in response.text
    first, second = ([m for m in one.messages if m["role"] == "user"] for one in model.prompts)
    assert len(first) == 21
    assert 8 <= len(second) <= 12
    assert second[-1]["content"] == "hi"
    assert second[-2]["content"].startswith("19 ")
    stored = (await api.http.get("/v1/sessions/s/messages")).json()["items"]
    assert len(stored) == 22

    model.script = [ContextTooLarge("too long"), ContextTooLarge("too long")]
    response = await api.http.post(CHAT, json=asked | {"stream": False})
    problem(response, 422, "context_too_large")


async def test_where_half_of_the_context_is_nothing_the_models_own_reason_is_told(api, model):
    model.script = [ContextTooLarge("longer than 4096 tokens")]
    response = await api.http.post(CHAT, json={"message": "hi"})
    assert "4096" in problem(response, 422, "context_too_large")["detail"]
    assert len(model.prompts) == 1


async def test_a_failed_turn_does_not_wait_for_a_store_that_is_away(api, model, monkeypatch):
    tries = []

    async def away(finish: Finish) -> Finished:
        tries.append(finish)
        raise HotUnavailable("away")

    monkeypatch.setattr(api.use_cases.chat._turns, "fail", away)
    model.script = [ModelError("no")]
    problem(await api.http.post(CHAT, json={"message": "hi"}), 502, "model_error")
    assert len(tries) == 1

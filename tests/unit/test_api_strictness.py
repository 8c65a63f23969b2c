"""What the API refuses although a lenient server would guess, and what its document tells."""

from collections.abc import AsyncGenerator

import pytest

from service.adapters.openai.model import NoModel
from tests.support.api import Client, api_client

JSON = {"content-type": "application/json"}


@pytest.fixture
async def api() -> AsyncGenerator[Client]:
    async with api_client(NoModel("none")) as client:
        yield client


def refused(response, status: int, code: str, field: str) -> None:
    body = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, body["code"]) == (status, code), body
    assert [error["field"] for error in body["errors"]] == [field], body


async def append(api: Client, session: str, content: bytes):
    return await api.http.post(f"/v1/sessions/{session}/messages", content=content, headers=JSON)


async def test_null_in_a_patch_removes_one_part_of_the_context(api):
    context = {"strategy": "window", "last": 3}
    await api.http.post("/v1/sessions", json={"id": "s", "context": context})
    changed = await api.http.patch("/v1/sessions/s", json={"context": {"last": None}})
    assert changed.json()["context"] == {"strategy": "window"}
    changed = await api.http.patch("/v1/sessions/s", json={"context": None})
    assert changed.json()["context"] is None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/v1/sessions//messages"),
        ("GET", "/v1/sessions//messages"),
        ("GET", "/v1/sessions/messages/"),
        ("GET", "/v1/sessions/"),
        ("DELETE", "/history//messages"),
        ("DELETE", "/history/messages/"),
        ("GET", "//history/messages"),
    ],
)
async def test_an_empty_segment_is_nowhere_and_never_another_session(api, method, path):
    said = b'{"messages": [{"role": "user", "content": "x"}]}'
    assert (await append(api, "messages", said)).status_code == 201
    response = await api.http.request(method, path)
    assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert len((await api.http.get("/history/messages")).json()["messages"]) == 1


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("user_id=%ff", "user_id"),
        ("user_id=%zz", "user_id"),
        ("user_id=a%ED%A0%80", "user_id"),
        ("limit=1&limit=2", "limit"),
        ("%ff=1", "query"),
        ("nonsense", "nonsense"),
        ("us%65r_id=a&user_id=b", "user_id"),
    ],
)
async def test_a_query_is_taken_whole_or_refused(api, query, field):
    response = await api.http.get(f"/v1/sessions?{query}")
    refused(response, 400, "invalid_request", field)


async def test_a_query_may_hold_any_text(api):
    for user, query in (("a b", "a+b"), ("a+b", "a%2Bb"), ("你好&", "%E4%BD%A0%E5%A5%BD%26")):
        await api.http.post("/v1/sessions", json={"user_id": user})
        [item] = (await api.http.get(f"/v1/sessions?user_id={query}")).json()["items"]
        assert item["user_id"] == user


async def test_no_page_or_document_is_served_but_our_own(api):
    async with api_client(NoModel("none"), docs=False) as without:
        for http in (api.http, without.http):
            for path in ("/openapi", "/openapi/openapi.json", "/openapi/swagger", "/schema"):
                assert (await http.get(path)).status_code == 404, path


async def test_the_document_tells_limits_headers_and_the_merge_patch(api):
    document = (await api.http.get("/openapi.json")).json()
    append_messages = document["paths"]["/v1/sessions/{session_id}/messages"]["post"]
    parameters = {p["name"]: p["schema"] for p in append_messages["parameters"]}
    assert parameters["session_id"]["maxLength"] == 255
    assert parameters["Idempotency-Key"]["maxLength"] == 255
    assert "Idempotency-Replayed" in append_messages["responses"]["201"]["headers"]
    unavailable = append_messages["responses"]["503"]["headers"]
    assert {"Retry-After", "x-should-retry", "X-Request-Id"} == set(unavailable)
    listed = document["paths"]["/v1/sessions"]["get"]["parameters"]
    assert {"name": "limit", "maximum": 1000}.items() <= (
        {"name": "limit"} | next(p["schema"] for p in listed if p["name"] == "limit")
    ).items()

    content = document["paths"]["/v1/sessions/{session_id}"]["patch"]["requestBody"]["content"]
    assert set(content) == {"application/json", "application/merge-patch+json"}
    schemas = document["components"]["schemas"]
    assert schemas["SessionPatchBody"]["properties"]["ttl_seconds"]["minimum"] == 60
    ready = document["paths"]["/health/ready"]["get"]["responses"]
    assert set(ready["503"]["content"]) == {"application/json"}


@pytest.mark.parametrize(("seconds", "field"), [("60.0", "body"), ("60", "metadata[...]")])
async def test_a_number_too_large_is_refused_whatever_stands_beside_it(api, seconds, field):
    body = f'{{"id": "q", "ttl_seconds": {seconds}, "metadata": {{"a": 1e999}}}}'
    headers = {"content-type": "application/json"}
    response = await api.http.post("/v1/sessions", content=body, headers=headers)
    refused(response, 400, "invalid_request", field)

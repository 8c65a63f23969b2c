"""Profiles over HTTP, and in prompts."""

from collections.abc import AsyncGenerator

import pytest

from tests.support.api import Client, api_client, problem
from tests.support.scripted_model import ScriptedModel

PROFILE = "/v1/users/ada/profile"
CATS = {"topics": {"pets": [{"fact": "has a cat"}]}}


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel()


@pytest.fixture
async def api(model: ScriptedModel) -> AsyncGenerator[Client]:
    async with api_client(model) as client:
        yield client


async def test_a_profile_is_made_read_replaced_and_deleted(api):
    problem(await api.http.get(PROFILE), 404, "not_found")
    problem(await api.http.delete(PROFILE), 404, "not_found")
    made = await api.http.put(PROFILE, json=CATS)
    assert made.status_code == 201
    body = made.json()
    assert (body["user_id"], body["topics"]) == ("ada", CATS["topics"])
    assert body["updated_at"].endswith("Z")

    got = await api.http.get(PROFILE)
    assert (got.status_code, got.json(), got.headers["etag"]) == (200, body, made.headers["etag"])
    again = await api.http.put(PROFILE, json={"topics": {}})
    assert again.status_code == 200
    assert again.headers["etag"] != made.headers["etag"]
    assert (await api.http.delete(PROFILE)).status_code == 204
    problem(await api.http.get(PROFILE), 404, "not_found")


async def test_a_patch_merges_and_makes(api):
    assert (await api.http.patch(PROFILE, json=CATS)).status_code == 201
    change = {"topics": {"food": [{"fact": "pie"}], "pets": None}}
    merge = {"content-type": "application/merge-patch+json"}
    changed = await api.http.request("PATCH", PROFILE, json=change, headers=merge)
    assert (changed.status_code, changed.json()["topics"]) == (200, {"food": [{"fact": "pie"}]})
    assert (await api.http.patch(PROFILE, json={})).json()["topics"] == {"food": [{"fact": "pie"}]}
    assert (await api.http.patch(PROFILE, json={"topics": None})).json()["topics"] == {}


async def test_an_etag_guards_against_lost_updates(api):
    first = (await api.http.put(PROFILE, json=CATS)).headers["etag"]
    second = (await api.http.put(PROFILE, json=CATS, headers={"If-Match": first})).headers["etag"]
    for method in ("PUT", "PATCH", "DELETE"):
        body = None if method == "DELETE" else {"topics": {}}
        for stale in (first, f"W/{second}", '"x", "y"'):
            headers = {"If-Match": stale}
            refused = await api.http.request(method, PROFILE, json=body, headers=headers)
            assert "last_id" not in problem(refused, 412, "precondition_failed")
    assert (await api.http.get(PROFILE)).json()["topics"] == CATS["topics"]

    several = {"If-Match": f'{first}, {second} ,"z"'}
    assert (await api.http.patch(PROFILE, json={}, headers=several)).status_code == 200
    assert (await api.http.delete(PROFILE, headers={"If-Match": "*"})).status_code == 204
    problem(
        await api.http.put(PROFILE, json=CATS, headers={"If-Match": "*"}),
        412,
        "precondition_failed",
    )
    only_new = {"If-None-Match": "*"}
    assert (await api.http.put(PROFILE, json=CATS, headers=only_new)).status_code == 201
    refused = await api.http.put(PROFILE, json=CATS, headers=only_new)
    problem(refused, 412, "precondition_failed")


async def test_what_is_known_already_is_not_sent_again(api):
    etag = (await api.http.put(PROFILE, json=CATS)).headers["etag"]
    for tag in (etag, f"W/{etag}", "*", f'"a", {etag}'):
        unchanged = await api.http.get(PROFILE, headers={"If-None-Match": tag})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["etag"] == etag
    assert (await api.http.get(PROFILE, headers={"If-None-Match": '"a"'})).status_code == 200


@pytest.mark.parametrize("tag", ["", "abc", '"a', '"a" "b"', '"a",', 'w/"a"', '"ä"'])
async def test_a_malformed_etag_is_refused_and_changes_nothing(api, tag):
    await api.http.put(PROFILE, json=CATS)
    headers = {"If-Match": tag.encode()}
    refused = await api.http.put(PROFILE, json={"topics": {}}, headers=headers)
    problem(refused, 422, "invalid_value", "If-Match")
    assert (await api.http.get(PROFILE)).json()["topics"] == CATS["topics"]


def nested(depth: int) -> str:
    return '{"topics": {"a": ' + "[" * depth + "]" * depth + "}}"


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ("{}", 400, "invalid_request", "topics"),
        ('{"topics": {"a": [{"fact": 1}]}}', 400, "invalid_request", "topics[...][0].fact"),
        ('{"topics": {"a": [{"x": "y"}]}}', 400, "invalid_request", "topics[...][0].x"),
        ('{"topics": {"a": [{"fact": "x", "y": 1}]}}', 400, "invalid_request", None),
        ('{"topics": {"a": [{"fact": ""}]}}', 422, "invalid_value", "topics.a[0].fact"),
        ('{"topics": {"a": [{"fact": "\\u0000"}]}}', 422, "invalid_value", "topics.a[0].fact"),
        ('{"topics": {"": []}}', 422, "invalid_value", "topics."),
        ('{"topics": {"a": [{"fact": "\\ud800"}]}}', 400, "invalid_request", "body"),
        (
            '{"topics": {"a": [{"fact": "x", "source_message_id": "1"}]}}',
            *(422, "invalid_value", "topics.a[0].source_message_id"),
        ),
        (nested(1000), 400, "invalid_request", None),
        (nested(100_000), 413, "too_large", "body"),
    ],
)
async def test_a_bad_profile_names_its_field_and_changes_nothing(api, body, status, code, field):
    await api.http.put(PROFILE, json=CATS)
    headers = {"content-type": "application/json"}
    for method in ("PUT", "PATCH") if body != "{}" else ("PUT",):
        refused = await api.http.request(method, PROFILE, content=body, headers=headers)
        found = problem(refused, status, code)
        if field is not None and "..." not in field:
            assert [error["field"] for error in found["errors"]] == [field]
    assert (await api.http.get(PROFILE)).json()["topics"] == CATS["topics"]


async def test_a_profile_has_a_largest_size():
    async with api_client(ScriptedModel(), body_bytes_max=1_000_000) as api:
        facts = [{"fact": "x" * 1000} for _ in range(70)]
        refused = await api.http.put(PROFILE, json={"topics": {"a": facts}})
        assert "at most 65536 bytes" in problem(refused, 422, "invalid_value", "topics")["detail"]
        for number in range(6):
            body = {"topics": {str(number): facts[:10]}}
            assert (await api.http.patch(PROFILE, json=body)).status_code in {200, 201}
        refused = await api.http.patch(PROFILE, json={"topics": {"more": facts[:10]}})
        problem(refused, 422, "invalid_value", "topics")
        assert len((await api.http.get(PROFILE)).json()["topics"]) == 6


async def test_a_user_id_in_a_path_is_decoded_once(api):
    await api.http.put("/v1/users/a%2Fb%25/profile", json=CATS)
    assert (await api.http.get("/v1/users/a%2Fb%25/profile")).json()["user_id"] == "a/b%"
    problem(await api.http.get("/v1/users/%00/profile"), 422, "invalid_value", "user_id")
    problem(await api.http.get("/v1/users/%zz/profile"), 422, "invalid_value", "user_id")


async def test_the_model_is_shown_the_profile_where_it_is_wanted(api, model):
    await api.http.put(PROFILE, json=CATS)
    body = {"user_id": "ada", "message": "hi"}
    await api.http.post("/chat", json=body)
    assert len(model.prompts[-1].messages) == 1

    turn = await api.http.post("/chat", json=body | {"context": {"profile": True}})
    shown = model.prompts[-1].messages[0]
    assert shown["role"] == "system"
    assert "- has a cat" in shown["content"]
    assert turn.json()["context"]["tokens"] > 30
    # The session's owner counts where the request names nobody.
    await api.http.post(
        "/v1/sessions/ada/chat", json={"message": "x", "context": {"profile": True}}
    )
    assert "- has a cat" in model.prompts[-1].messages[0]["content"]

    await api.http.patch("/v1/sessions/ada", json={"context": {"profile": True}})
    instructed = {"message": "y", "instructions": "Be brief."}
    await api.http.post("/v1/sessions/ada/chat", json=instructed)
    assert [m["role"] for m in model.prompts[-1].messages[:3]] == ["system", "system", "user"]
    tokens = (await api.http.get("/v1/sessions/ada/context")).json()["tokens"]
    assert tokens["profile"] > 20
    off = (await api.http.get("/v1/sessions/ada/context?profile=false")).json()["tokens"]
    assert off["profile"] == 0
    assert off["total"] == tokens["total"] - tokens["profile"]


async def test_nobodys_session_and_nobodys_profile_show_none(api, model):
    asked = {"message": "x", "context": {"profile": True}}
    assert (await api.http.post("/v1/sessions/s/chat", json=asked)).status_code == 200
    await api.http.post("/v1/sessions/t/chat", json=asked | {"user_id": "eve"})
    assert [len(prompt.messages) for prompt in model.prompts] == [1, 1]

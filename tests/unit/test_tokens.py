"""Token counts: exact for the vocabulary, and who they stand for."""

import bpe_openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.adapters.tokens.vocabularies import LOADED_MAX, Vocabularies, vocabulary_of
from service.domain.ids import ZERO_ID
from service.domain.messages import Message, MessageBody
from service.domain.tokens import (
    MESSAGE_TOKENS,
    NAME_TOKENS,
    OTHER_PART_TOKENS,
    count_body,
    counted,
    message_tokens,
)

# OpenAI's own rank files, in another implementation.
REFERENCES = {name: bpe_openai.get_encoding(name) for name in ("o200k_base", "cl100k_base")}
ODD = [
    "",
    "tiktoken is great!",
    "<|endoftext|> and <|im_start|>system",
    "  \n\t \n  x",
    "don't DON'T we'LL",
    "你好。世界。東京都の天気",
    "안녕하세요 세계",
    "👨‍👩‍👧 e\u0301 \u200b \ufeff",
    "1234567890" * 20,
    "aaaa" * 500,
]


@pytest.fixture(scope="module")
def vocabularies() -> Vocabularies:
    return Vocabularies()


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4"])
@given(text=st.one_of(st.sampled_from(ODD), st.text(max_size=200)))
async def test_counts_are_those_of_the_vocabulary(vocabularies, model, text):
    tokenizer = await vocabularies.of(model)
    reference = REFERENCES[tokenizer.vocabulary]
    assert tokenizer.count(text) == len(reference.encode_ordinary(text))


@pytest.mark.parametrize(
    ("model", "vocabulary"),
    [
        ("gpt-4.1-mini", "o200k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("ft:gpt-4o-mini:acme::x", "o200k_base"),
        ("openai/gpt-oss-20b", "o200k_harmony"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3"),
        ("Qwen/Qwen3-8B", "qwen3"),
        ("smollm2", None),
        ("my-gpt-4o", None),
    ],
)
def test_a_model_is_known_by_the_beginning_of_its_name(model, vocabulary):
    assert vocabulary_of(model) == vocabulary


async def test_an_unknown_model_counts_with_the_default_and_says_so(vocabularies):
    tokenizer = await vocabularies.of("smollm2")
    assert (tokenizer.vocabulary, tokenizer.known) == ("o200k_base", False)


async def test_many_vocabularies_do_not_pile_up():
    vocabularies = Vocabularies()
    for model in ("gpt-4o", "gpt-4", "llama3", "qwen3", "deepseek-v3", "phi-4"):
        await vocabularies.of(model)
    assert len(vocabularies._loaded) == LOADED_MAX
    assert (await vocabularies.of("gpt-4o")).count("hello world") == 2


async def test_a_message_costs_what_is_said_called_and_named(vocabularies):
    tokenizer = await vocabularies.of("gpt-4o")
    text = MessageBody(role="user", content="hello world")
    assert count_body(tokenizer, text) == 2
    parts = [{"type": "text", "text": "hello world"}, {"type": "image_url", "image_url": {}}]
    assert count_body(tokenizer, MessageBody(role="user", content=parts)) == 2 + OTHER_PART_TOKENS
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    called = MessageBody(role="assistant", tool_calls=calls)
    assert count_body(tokenizer, called) > 10

    named = Message(id=ZERO_ID, role="user", content="hello world", name="ada")
    name = tokenizer.count("ada")
    assert message_tokens(tokenizer, named) == 2 + name + MESSAGE_TOKENS + NAME_TOKENS


async def test_a_stored_count_stands_for_its_own_vocabulary_only(vocabularies):
    wide, narrow = await vocabularies.of("gpt-4o"), await vocabularies.of("gpt-4")
    text = "你好。世界。東京都の天気"
    body = counted(narrow, MessageBody(role="user", content=text))
    assert (body.token_count, body.tokenizer) == (narrow.count(text), "cl100k_base")
    assert counted(wide, body).tokenizer is None

    message = Message(id=ZERO_ID, role="user", content=text, token_count=7, tokenizer="cl100k_base")
    assert message_tokens(narrow, message) == 7 + MESSAGE_TOKENS
    assert message_tokens(wide, message) == wide.count(text) + MESSAGE_TOKENS

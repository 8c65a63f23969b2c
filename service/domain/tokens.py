"""Tokens: what a message costs a model, counted offline.

A count is exact for the text and the vocabulary. What a chat template adds around it is a rule of
OpenAI's (cookbook, "How to count tokens with tiktoken"): three tokens and the role per message, one
per name, three before the answer. Parts that are no text cost the most that an image costs there.
"""

from typing import Final, Protocol

import msgspec

from service.domain.messages import MessageBody

MESSAGE_TOKENS: Final = 4
NAME_TOKENS: Final = 1
REPLY_TOKENS: Final = 3
OTHER_PART_TOKENS: Final = 1105
DEFAULT_VOCABULARY: Final = "o200k_base"
"""Counts with it are stored without its name."""


class Tokenizer(Protocol):
    """Counts in one vocabulary."""

    @property
    def vocabulary(self) -> str: ...

    @property
    def known(self) -> bool:
        """False where the model is unknown and the default vocabulary stands in."""
        ...

    def count(self, text: str) -> int:
        """Special tokens that the text spells out count as text."""
        ...


def count_body(tokenizer: Tokenizer, body: MessageBody) -> int:
    """Tokens of what is said and called, without what the template adds."""
    tokens = 0
    match body.content:
        case str() as text:
            tokens = tokenizer.count(text)
        case list() as parts:
            tokens = sum(_count_part(tokenizer, part.get("text")) for part in parts)
        case None:
            pass
    if body.tool_calls:
        tokens += tokenizer.count(msgspec.json.encode(body.tool_calls).decode())
    if body.name is not None:
        tokens += tokenizer.count(body.name)
    return tokens


def counted(tokenizer: Tokenizer, body: MessageBody) -> MessageBody:
    """The body with its count, as it is stored."""
    vocabulary = tokenizer.vocabulary
    return msgspec.structs.replace(
        body,
        token_count=count_body(tokenizer, body),
        tokenizer=None if vocabulary == DEFAULT_VOCABULARY else vocabulary,
    )


def stored_tokens(message: MessageBody, vocabulary: str) -> int | None:
    """The count that the message came with; None where it is of another vocabulary."""
    if (message.tokenizer or DEFAULT_VOCABULARY) != vocabulary:
        return None
    return message.token_count


def message_tokens(tokenizer: Tokenizer, message: MessageBody) -> int:
    """All that the message costs in a prompt."""
    stored = stored_tokens(message, tokenizer.vocabulary)
    tokens = count_body(tokenizer, message) if stored is None else stored
    return tokens + MESSAGE_TOKENS + (NAME_TOKENS if message.name is not None else 0)


def text_tokens(tokenizer: Tokenizer, text: str | None) -> int:
    """What a text costs as a message of its own; nothing where there is none."""
    return 0 if text is None else tokenizer.count(text) + MESSAGE_TOKENS


def _count_part(tokenizer: Tokenizer, text: object) -> int:
    return tokenizer.count(text) if isinstance(text, str) else OTHER_PART_TOKENS

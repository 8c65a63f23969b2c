"""Vocabularies of models, counted offline by splintr."""

import asyncio
from collections import OrderedDict
from functools import lru_cache
from typing import Any, Final

import splintr

from service.domain.tokens import DEFAULT_VOCABULARY, Tokenizer

LOADED_MAX: Final = 4
"""Vocabularies kept in memory, some 30 MB each; the one that was not used longest goes."""

VOCABULARIES: Final[tuple[tuple[str, str], ...]] = (
    ("gpt-oss", "o200k_harmony"),
    ("gpt-4o", "o200k_base"),
    ("gpt-4.1", "o200k_base"),
    ("gpt-4.5", "o200k_base"),
    ("gpt-5", "o200k_base"),
    ("chatgpt-4o", "o200k_base"),
    ("o1", "o200k_base"),
    ("o3", "o200k_base"),
    ("o4", "o200k_base"),
    ("gpt-4", "cl100k_base"),
    ("gpt-3.5", "cl100k_base"),
    ("text-embedding-", "cl100k_base"),
    ("llama-3", "llama3"),
    ("llama3", "llama3"),
    ("meta-llama-3", "llama3"),
    ("deepseek-v3", "deepseek_v3"),
    ("deepseek-chat", "deepseek_v3"),
    ("deepseek-r1", "deepseek_v3"),
    ("deepseek-reasoner", "deepseek_v3"),
    ("qwen3", "qwen3"),
    ("qwen2", "qwen3"),
    ("phi-4", "phi4"),
    ("mistral-nemo", "mistral_v3"),
    ("mistral-large-2", "mistral_v3"),
    ("pixtral", "mistral_v3"),
    ("kimi-k2", "kimi_k2"),
    ("glm-4", "glm4"),
)
"""Beginnings of models' names, the first that fits; OpenAI's by its tiktoken package."""


class SplintrTokenizer:
    """Tokenizer over a loaded vocabulary."""

    def __init__(self, vocabulary: str, loaded: Any, *, known: bool) -> None:
        self.vocabulary = vocabulary
        self.known = known
        self._loaded = loaded

    def count(self, text: str) -> int:
        return len(self._loaded.encode_ordinary(text))


class Vocabularies:
    """Tokenizers from the vocabularies that splintr carries; nothing is downloaded."""

    def __init__(self) -> None:
        self._loaded: OrderedDict[str, Any] = OrderedDict()

    async def of(self, model: str) -> Tokenizer:
        vocabulary = vocabulary_of(model)
        name = vocabulary or DEFAULT_VOCABULARY
        return SplintrTokenizer(name, await self._load(name), known=vocabulary is not None)

    async def _load(self, name: str) -> Any:
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return self._loaded[name]
        loaded = await asyncio.to_thread(_read, name)
        self._loaded[name] = loaded
        while len(self._loaded) > LOADED_MAX:
            self._loaded.popitem(last=False)
        return loaded


def vocabulary_of(model: str) -> str | None:
    """None for an unknown model. Names may carry a vendor in front: ``openai/gpt-4o``."""
    name = model.lower().removeprefix("ft:").rpartition("/")[2]
    return next((found for start, found in VOCABULARIES if name.startswith(start)), None)


@lru_cache(maxsize=LOADED_MAX)
def _read(name: str) -> Any:
    return splintr.Tokenizer.from_pretrained(name)

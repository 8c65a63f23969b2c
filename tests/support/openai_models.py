"""Models at a scripted server, and what they are asked."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from service.adapters.openai.model import ModelSettings, OpenAIModel
from service.domain.turns import Prompt
from tests.support.stores import Recorder

KEY = "sk-planted-secret"
QUESTION = "the planted question 你好 🦉 \u202e שלום"
PROMPT = Prompt(messages=({"role": "user", "content": QUESTION},), model="m")


@asynccontextmanager
async def model_of(recorder: Recorder, **changes: Any) -> AsyncGenerator[OpenAIModel]:
    settings = msgspec.structs.replace(ModelSettings(api_key=KEY, max_retries=1), **changes)
    model = OpenAIModel(settings, recorder)
    yield model
    await model.close()

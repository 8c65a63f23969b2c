"""Models at a scripted server, and what they are asked."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from opentelemetry.trace import Tracer

from service.adapters.openai.model import ModelSettings, OpenAIModel
from service.bootstrap.ambient import SystemClock
from service.domain.turns import Prompt
from service.ports import Clock
from tests.support.stores import Recorder

KEY = "sk-planted-secret"
QUESTION = "the planted question 你好 🦉 \u202e שלום"
PROMPT = Prompt(messages=({"role": "user", "content": QUESTION},), model="m")


@asynccontextmanager
async def model_of(
    recorder: Recorder, clock: Clock | None = None, tracer: Tracer | None = None, **changes: Any
) -> AsyncGenerator[OpenAIModel]:
    settings = msgspec.structs.replace(ModelSettings(api_key=KEY, max_retries=1), **changes)
    model = OpenAIModel(settings, recorder, clock or SystemClock(), tracer)
    # As at the service's start: importing the package is not to be paid by a deadline of a test.
    await model.open()
    yield model
    await model.close()

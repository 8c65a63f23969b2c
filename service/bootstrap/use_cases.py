"""Use cases over an open store, and the model behind them."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from service.adapters.openai.chat_completions import ModelSettings, NoModel, OpenAIModel
from service.api.use_cases import UseCases
from service.bootstrap.stores import Store
from service.core.chat import Chat, ChatSettings
from service.core.recall import Recall
from service.core.recording import Recording
from service.ports import Clock, Model, Observer
from service.settings import Settings

NO_MODEL: Final = (
    "No model is configured: set OPENAI_API_KEY, and OPENAI_BASE_URL for another server than "
    "OpenAI's."
)


@asynccontextmanager
async def open_use_cases(
    settings: Settings, store: Store, clock: Clock, observer: Observer
) -> AsyncGenerator[UseCases]:
    model = _model(settings, observer)
    # Imported before the first caller waits for it.
    await model.open()
    try:
        yield wired(settings, store, model, clock=clock, observer=observer)
    finally:
        await model.close()


def wired(
    settings: Settings, store: Store, model: Model, *, clock: Clock, observer: Observer
) -> UseCases:
    chat_settings = ChatSettings(
        model=settings.openai_model,
        message_bytes_max=settings.message_bytes_max,
        deadline_seconds=settings.turn_deadline_seconds,
        lease_seconds=settings.turn_lease_seconds,
    )
    return UseCases(
        recording=Recording(
            store.transcripts, store.sessions, message_bytes_max=settings.message_bytes_max
        ),
        recall=Recall(store.transcripts, store.sessions),
        chat=Chat(store.turns, model, chat_settings, clock=clock, observer=observer),
    )


def _model(settings: Settings, observer: Observer) -> OpenAIModel | NoModel:
    if settings.openai_api_key is None:
        return NoModel(NO_MODEL)
    return OpenAIModel(
        ModelSettings(
            api_key=settings.openai_api_key,
            base_url=settings.openai_base_url,
            connect_seconds=settings.openai_connect_timeout_seconds,
            max_retries=settings.openai_max_retries,
            connections=settings.openai_pool_size,
        ),
        observer,
    )

"""Use cases over an open store, and the model behind them."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from service.adapters.openai.model import ModelSettings, NoModel, OpenAIModel
from service.adapters.tokens.vocabularies import Vocabularies
from service.api.use_cases import UseCases
from service.bootstrap.ambient import process_tracer
from service.bootstrap.stores import Store
from service.core.background import running
from service.core.chat import Chat, ChatSettings
from service.core.counting import Counting
from service.core.erasing import Erasing
from service.core.exporting import Exporting
from service.core.importing import Importing, ImportLimits
from service.core.profiles import UserProfiles
from service.core.prompting import Prompting
from service.core.recall import Recall
from service.core.recording import Recording
from service.core.resuming import Resuming
from service.core.searching import Searching
from service.core.statistics import UserStatistics
from service.core.summarizing import Summarizer, SummarySettings
from service.ports import Clock, Observer, StreamingModel, Tokenizers
from service.settings import Settings

NO_MODEL: Final = (
    "No model is configured: set OPENAI_API_KEY, and OPENAI_BASE_URL for another server than "
    "OpenAI's."
)

DETACHED_SHARE: Final = 0.1
"""Part of the grace time for turns whose callers have left."""


@asynccontextmanager
async def open_use_cases(
    settings: Settings, store: Store, clock: Clock, observer: Observer
) -> AsyncGenerator[UseCases]:
    model = _model(settings, clock, observer)
    # Imported before the first caller waits for it.
    await model.open()
    try:
        async with running_use_cases(
            settings, store, model, clock=clock, observer=observer
        ) as use_cases:
            yield use_cases
    finally:
        await model.close()


@asynccontextmanager
async def running_use_cases(
    settings: Settings, store: Store, model: StreamingModel, *, clock: Clock, observer: Observer
) -> AsyncGenerator[UseCases]:
    """Use cases, and the background work that they ask for."""
    tokenizers = Vocabularies()
    summarizer = Summarizer(
        store.transcripts,
        store.sessions,
        model,
        tokenizers,
        SummarySettings(
            model=settings.summary_model or settings.openai_model,
            tokens_max=settings.summary_tokens_max,
            input_tokens_max=settings.summary_input_tokens_max,
            deadline_seconds=settings.summary_deadline_seconds,
        ),
        clock=clock,
        observer=observer,
    )
    await tokenizers.of(settings.openai_model)
    async with running([summarizer, *store.turn_components]):
        use_cases = _wired(settings, store, model, tokenizers, summarizer, clock, observer)
        try:
            yield use_cases
        finally:
            grace = settings.shutdown_grace_seconds * DETACHED_SHARE
            await use_cases.chat.stop(within_seconds=grace)


def _wired(
    settings: Settings,
    store: Store,
    model: StreamingModel,
    tokenizers: Tokenizers,
    summarizer: Summarizer,
    clock: Clock,
    observer: Observer,
) -> UseCases:
    profiles = UserProfiles(store.profiles, bytes_max=settings.profile_bytes_max, clock=clock)
    prompting = Prompting(tokenizers)
    counting = Counting(tokenizers, model=settings.openai_model)
    return UseCases(
        recording=Recording(
            store.transcripts,
            store.sessions,
            counting,
            message_bytes_max=settings.message_bytes_max,
        ),
        recall=Recall(
            store.transcripts,
            store.sessions,
            prompting,
            model=settings.openai_model,
            profile_text=profiles.text,
            offer_summary=summarizer.offer,
        ),
        searching=Searching(store.search),
        profiles=profiles,
        statistics=UserStatistics(store.statistics, clock=clock),
        importing=importing_of(settings, store, counting),
        chat=Chat(
            store.turns,
            model,
            prompting,
            counting,
            _chat_settings(settings),
            profile_text=profiles.text,
            offer_summary=summarizer.offer,
            clock=clock,
            observer=observer,
            pieces=store.pieces,
        ),
        resuming=Resuming(store.turns, counting, message_bytes_max=settings.message_bytes_max),
        erasing=Erasing(store.erasure, profiles.forget, clock),
        exporting=Exporting(
            store.user_sessions, store.sessions, store.transcripts, store.profiles.get, clock
        ),
    )


def _chat_settings(settings: Settings) -> ChatSettings:
    return ChatSettings(
        model=settings.openai_model,
        message_bytes_max=settings.message_bytes_max,
        deadline_seconds=settings.turn_deadline_seconds,
        lease_seconds=settings.turn_lease_seconds,
        wait_seconds=settings.turn_wait_seconds,
        ends_when_left=settings.turn_on_disconnect == "cancel",
    )


def importing_of(settings: Settings, store: Store, counting: Counting) -> Importing:
    limits = ImportLimits(
        message_bytes_max=settings.message_bytes_max,
        line_bytes_max=settings.import_line_bytes_max,
        bytes_max=settings.import_bytes_max,
    )
    return Importing(store.imports, counting, limits)


def _model(settings: Settings, clock: Clock, observer: Observer) -> OpenAIModel | NoModel:
    if settings.openai_api_key is None:
        return NoModel(NO_MODEL)
    return OpenAIModel(
        ModelSettings(
            api_key=settings.openai_api_key,
            base_url=settings.openai_base_url,
            api=settings.openai_api,
            connect_seconds=settings.openai_connect_timeout_seconds,
            max_retries=settings.openai_max_retries,
            connections=settings.openai_pool_size,
            first_token_seconds=settings.first_token_timeout_seconds,
            stall_seconds=settings.stall_timeout_seconds,
            calls_max=settings.model_calls_max,
            breaker_failures=settings.model_breaker_failures,
            breaker_seconds=settings.model_breaker_seconds,
            fallback_models=settings.fallback_models,
        ),
        observer,
        clock,
        process_tracer(),
    )

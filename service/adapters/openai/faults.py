"""The client's troubles as errors of the domain. No prompt, key, address or server text in them."""

import math
from http import HTTPStatus
from typing import Final

import httpx2
import openai

from service.adapters.openai.refusals import CallFailed, of_status
from service.adapters.openai.retry_after import asked_wait
from service.domain.errors import ModelError, ModelTimeout, ModelUnavailable

RETRY_AFTER_SECONDS_MAX: Final = 60


def translated(error: Exception) -> CallFailed:
    """What an error of the client means, after its retries."""
    match error:
        case openai.APITimeoutError() | TimeoutError() | httpx2.TimeoutException():
            return CallFailed(ModelTimeout("The model did not answer in time."), outage=True)
        case openai.APIConnectionError():
            unreachable = ModelUnavailable("The model's server cannot be reached.")
            return CallFailed(unreachable, outage=True)
        case httpx2.RequestError():
            broken = ModelUnavailable("The model's server broke the connection.")
            return CallFailed(broken, outage=True)
        case openai.APIStatusError():
            return _of_status(error)
        case openai.APIError():
            unreadable = ModelError("The model's answer cannot be read.", retryable=True)
            return CallFailed(unreadable, outage=False)
        case _:
            # A key that is no header value, a port that is none: the client lets those through as
            # they are, some with the key in their words.
            odd = ModelError(f"The model cannot be asked: {type(error).__name__}.")
            return CallFailed(odd, outage=False)


def _of_status(error: openai.APIStatusError) -> CallFailed:
    status = error.status_code
    said = of_status(status, error.response.content, retry_after_seconds=_retry_after(error))
    return CallFailed(said, outage=status >= HTTPStatus.INTERNAL_SERVER_ERROR)


def _retry_after(error: openai.APIStatusError) -> int:
    """Whole seconds of what the server asked for; else one."""
    seconds = asked_wait(error.response.headers) or 1
    return math.ceil(min(max(seconds, 1), RETRY_AFTER_SECONDS_MAX))

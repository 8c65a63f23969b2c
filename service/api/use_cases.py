"""What the controllers call, and how they are given it."""

import msgspec
from litestar.di import NamedDependency

from service.core.chat import Chat
from service.core.erasing import Erasing
from service.core.exporting import Exporting
from service.core.readiness import Readiness
from service.core.recall import Recall
from service.core.recording import Recording


class UseCases(msgspec.Struct, frozen=True, kw_only=True):
    recording: Recording
    recall: Recall
    chat: Chat
    erasing: Erasing
    exporting: Exporting


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    body_bytes_max: int
    request_seconds: float
    """Time for any request but a turn, which has a deadline of its own."""
    docs: bool = True


Injected = NamedDependency[UseCases]
InjectedReadiness = NamedDependency[Readiness]

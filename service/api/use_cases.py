"""What the controllers call, and how they are given it."""

import msgspec
from litestar.di import NamedDependency

from service.core.chat import Chat
from service.core.erasing import Erasing
from service.core.exporting import Exporting
from service.core.importing import Importing
from service.core.profiles import UserProfiles
from service.core.readiness import Readiness
from service.core.recall import Recall
from service.core.recording import Recording
from service.core.resuming import Resuming
from service.core.searching import Searching
from service.core.statistics import UserStatistics


class UseCases(msgspec.Struct, frozen=True, kw_only=True):
    recording: Recording
    recall: Recall
    chat: Chat
    resuming: Resuming
    searching: Searching
    profiles: UserProfiles
    statistics: UserStatistics
    importing: Importing
    erasing: Erasing
    exporting: Exporting


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    body_bytes_max: int
    request_seconds: float
    """Time for any request but a turn, which has a deadline of its own."""
    docs: bool = True
    import_seconds: float = 600
    """Time for an import, receiving its body included."""
    unread_seconds: float = 30
    """Longest wait until the reader of a stream takes the next part of it."""


Injected = NamedDependency[UseCases]
InjectedReadiness = NamedDependency[Readiness]

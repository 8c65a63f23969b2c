"""The errors that a command ends with in one line, without a trace."""

from typing import Final

from service.adapters.postgres.migrations import MigrationError
from service.dev.errors import DevError
from service.domain.errors import ChatMemoryError

EXPECTED_ERRORS: Final = (ChatMemoryError, DevError, MigrationError)

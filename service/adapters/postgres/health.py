"""Whether PostgreSQL works for this process: it answers, and its schema is of this release."""

from collections.abc import Sequence
from typing import Literal

from service.adapters.postgres.door import PostgresDoor
from service.adapters.postgres.migrations import schema_problem
from service.domain.errors import ArchiveUnavailable


class PostgresProbe:
    """Probe of the archive's reachability, or of its schema.

    The two are apart because they mean different things: without PostgreSQL a hybrid store accepts,
    with the wrong schema it must not.
    """

    def __init__(
        self,
        door: PostgresDoor,
        versions: Sequence[int],
        *,
        asks: Literal["reachable", "schema"],
    ) -> None:
        self.name = "postgres" if asks == "reachable" else "schema"
        self._door = door
        self._versions = tuple(versions)
        self._asks = asks

    async def problem(self) -> str | None:
        try:
            async with self._door.connection() as connection:
                if self._asks == "schema":
                    return await schema_problem(connection, self._versions)
                await connection.execute("SELECT 1")
        except ArchiveUnavailable as error:
            # An archive that is away is told by the other probe alone.
            return error.detail if self._asks == "reachable" else None
        return None

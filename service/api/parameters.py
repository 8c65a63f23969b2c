"""Parameters that several routes take."""

from typing import Annotated, Literal

from litestar.params import HeaderParameter, QueryParameter

from service.api.requests import IDEMPOTENCY_KEY

Key = Annotated[
    str | None,
    HeaderParameter(
        name=IDEMPOTENCY_KEY,
        description="Calls with the same key and body are one call; kept for a day.",
    ),
]

LastEventId = Annotated[
    str | None,
    HeaderParameter(
        name="Last-Event-ID", description="The last event that was read: what follows it is told."
    ),
]

Consistency = Annotated[
    Literal["session", "archive"],
    QueryParameter(
        description="archive: what PostgreSQL has, which may lag, also while Redis is away."
    ),
]

Limit = Annotated[int, QueryParameter(description="1 to 1000.")]
Cursor = Annotated[str | None, QueryParameter(description="`next_cursor` of the page before.")]

WordsParameter = Annotated[
    str | None, QueryParameter(name="q", description="Words that a message must have, all of them.")
]

FromTime = Annotated[
    str | None, QueryParameter(name="from", description="RFC 3339, inclusive: time of acceptance.")
]
ToTime = Annotated[
    str | None, QueryParameter(name="to", description="RFC 3339, exclusive: time of acceptance.")
]

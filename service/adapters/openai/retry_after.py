"""How long a server asks its caller to wait."""

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

_NUMBER: Final = re.compile(r"[0-9]+(\.[0-9]+)?")


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds, of ``retry-after-ms`` or Retry-After, which is a number or a date.

    None where there is no such header, or none that makes sense.
    """
    for name, per_second in (("retry-after-ms", 1000), ("retry-after", 1)):
        text = headers.get(name, "")
        if _NUMBER.fullmatch(text):
            return float(text) / per_second
    try:
        return parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None

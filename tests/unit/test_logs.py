"""Logs tell what happened and where, never what was said."""

import json
import subprocess
import sys
from typing import Any

BEFORE = """
import logging
import structlog
from service.adapters.logs.configuration import configure

configure("info", "json")
log = structlog.stdlib.get_logger("a")
"""

FAILURE = """
def fail(message):
    secret = "the planted secret"
    raise ValueError(message + secret)

try:
    try:
        fail("the planted text")
    except ValueError as error:
        raise RuntimeError("the planted reason") from error
except RuntimeError as error:
    log.error("broken", exc_info=error)
    logging.getLogger("library").exception("failed")
"""

TRACE = """
with structlog.contextvars.bound_contextvars(trace_id="t1"):
    log.info("event", field=1)
    log.debug("not shown")
"""


def logged(program: str) -> list[dict[str, Any]]:
    """The log lines of a process of its own: pytest has handlers of its own in this one."""
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + program], capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_an_exception_is_logged_without_its_text_and_locals():
    ours, theirs = logged(FAILURE)

    assert "planted" not in json.dumps([ours, theirs])
    assert [link["type"] for link in ours["exception"]] == ["RuntimeError", "ValueError"]
    assert ours["exception"][1]["at"][-1].endswith("fail")
    assert theirs["exception"] == ours["exception"]
    assert (ours["event"], ours["level"], theirs["logger"]) == ("broken", "error", "library")


def test_lines_carry_the_trace_of_their_request():
    [line] = logged(TRACE)
    assert (line["trace_id"], line["field"]) == ("t1", 1)
    assert line["timestamp"].endswith("Z")


STATE = """
from opentelemetry.trace import TraceState
logging.getLogger("opentelemetry.sdk.trace.export").warning("export failed")
TraceState.from_header(["the planted secret"])
TraceState([("key", "planted\\n")])
"""


def test_what_a_callers_trace_says_is_not_logged():
    [line] = logged(STATE)
    assert (line["logger"], line["event"]) == ("opentelemetry.sdk.trace.export", "export failed")

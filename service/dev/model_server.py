"""The process of the local model, started by `service.dev.model`."""

import argparse
import importlib
import os
import signal
from typing import Any, Final

from service.dev.launch import become, die_with

_CONTEXT_TOKENS: Final = 8192  # What the model was trained for; some 190 MB when all of it is used.
_PARALLEL_ANSWERS: Final = 2
_PROMPT_CACHE_MIB: Final = 256
_LOG_ERRORS_AND_WARNINGS: Final = 2


def main() -> None:
    asked = _parse()
    owner_pid = os.getppid()
    server = _serve(asked)  # Serves on threads of its own for as long as it is referred to.

    become(asked.uid, asked.gid)
    die_with(owner_pid, signal.SIGKILL)  # Again: becoming another user takes it back.
    while server:
        signal.pause()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--uid", default=-1, type=int)
    parser.add_argument("--gid", default=-1, type=int)
    return parser.parse_args()


def _serve(asked: argparse.Namespace) -> Any:
    # Optional, for it has wheels for some platforms only; and without types, being compiled.
    xllamacpp: Any = importlib.import_module("xllamacpp")

    parameters = xllamacpp.CommonParams()
    parameters.model.path = asked.weights
    parameters.model_alias = [asked.model]
    parameters.hostnames = [asked.host]
    parameters.port = asked.port
    parameters.n_ctx = _CONTEXT_TOKENS
    parameters.n_parallel = _PARALLEL_ANSWERS
    parameters.kv_unified = True  # Either answer may use the whole context.
    parameters.cache_ram_mib = _PROMPT_CACHE_MIB
    parameters.ui = False
    parameters.cors_origins = ""  # No web page has business with it.
    parameters.endpoint_slots = False  # It would show everybody's prompts.
    parameters.verbosity = _LOG_ERRORS_AND_WARNINGS
    return xllamacpp.Server(parameters)


if __name__ == "__main__":
    main()

"""The command line: parses, calls, nothing else."""

import argparse
import asyncio
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

from service import __version__
from service.bootstrap.errors import EXPECTED_ERRORS
from service.settings import Settings, SettingsError, from_environment


def main(words: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, 1 for a run that failed, 2 for wrong words or settings."""
    arguments = _parser().parse_args(words)
    try:
        run = _run_of(arguments)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(run)
    except SettingsError as error:
        sys.stderr.write(f"chat-memory: {error}\n")
        return 2
    except EXPECTED_ERRORS as error:
        sys.stderr.write(f"chat-memory: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _run_of(arguments: argparse.Namespace) -> Coroutine[Any, Any, None]:
    settings = from_environment()
    # Imported here: wrong words and settings are told at once, without the service's imports.
    from service.bootstrap import imports, runs  # noqa: PLC0415  # As said above.

    match arguments.command:
        case "serve":
            return runs.serve(settings, with_flusher=arguments.with_flusher)
        case "flush":
            return runs.flush(settings)
        case "migrate":
            return runs.migrate(settings, arguments.direction)
        case "import":
            return imports.import_file(
                settings, arguments.file, skip_existing=arguments.skip_existing
            )
        case "dev":
            return runs.dev(settings)
        case _:
            return _tended(settings, arguments)


async def _tended(settings: Settings, arguments: argparse.Namespace) -> None:
    """What an operator or a clock does beside the processes that stay."""
    from service.bootstrap.operations import dead_letters  # noqa: PLC0415  # As said above.
    from service.bootstrap.retention import retain  # noqa: PLC0415  # Likewise.

    if arguments.command == "retain":
        await retain(settings)
        return
    every = getattr(arguments, "all", False)
    ids = getattr(arguments, "ids", [])
    await dead_letters(settings, arguments.action, ids, every=every)


def _loop_factory() -> Any:
    try:
        import uvloop  # noqa: PLC0415  # It has no build for every platform.
    except ImportError:
        return None
    return uvloop.new_event_loop


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service", description="chat-memory")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve the API")
    serve.add_argument("--with-flusher", action="store_true", help="and flush in this process")
    commands.add_parser("flush", help="carry the write-behind queue into the archive")
    commands.add_parser("retain", help="delete what is older than RETENTION_DAYS")
    migrate = commands.add_parser("migrate", help="change or check the schema")
    migrate.add_argument("direction", choices=["up", "down", "status", "verify"])
    importing = commands.add_parser("import", help="import sessions from JSON Lines")
    importing.add_argument("file", metavar="FILE", help="a message a line; - for standard input")
    importing.add_argument(
        "--skip-existing", action="store_true", help="pass over sessions that have messages"
    )
    _add_operations(commands.add_parser("ops", help="look after what needs a person"))
    commands.add_parser("dev", help="everything on this machine, as `make run` does")
    return parser


def _add_operations(ops: argparse.ArgumentParser) -> None:
    subjects = ops.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    letters = subjects.add_parser("dead-letters", help="entries that PostgreSQL refused")
    actions = letters.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="a JSON line for each")
    show = actions.add_parser("show", help="some of them")
    show.add_argument("ids", nargs="+", metavar="ID")
    retry = actions.add_parser("retry", help="try again to archive them, in their places")
    which = retry.add_mutually_exclusive_group(required=True)
    which.add_argument("ids", nargs="*", default=[], metavar="ID")
    which.add_argument("--all", action="store_true", help="all that there are")
    drop = actions.add_parser("drop", help="give them up: messages are gone for good")
    drop.add_argument("ids", nargs="+", metavar="ID")


if __name__ == "__main__":
    sys.exit(main())

"""What can go wrong with the servers of `make run` and the tests; each message is for people."""

from pathlib import Path


class DevError(Exception):
    """The development servers cannot do what was asked; the message says what to do."""


class ServerFailed(DevError):
    """A server ended, or did not answer in time, while it was started."""

    def __init__(self, name: str, what: str, log: Path, last_lines: str) -> None:
        super().__init__(f"{name} {what}. The last lines of {log}:\n{last_lines}")
        self.log = log


class DirectoryBusy(DevError):
    """Another run works in the directory."""

    def __init__(self, directory: Path, owner: str) -> None:
        super().__init__(
            f"{directory} is in use by another run (process {owner}). "
            "Stop that one, or set DATA_DIR to another directory."
        )
        self.directory = directory


class LocalModelUnavailable(DevError):
    """There is no local model on this machine; everything else works without it."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"No local model: {reason}. Set OPENAI_API_KEY (and OPENAI_BASE_URL and OPENAI_MODEL "
            "for anything but OpenAI itself) to chat with another model."
        )

"""A link: one TCP connection path between two processes, and what may become of it."""

import asyncio
import contextlib
from typing import Literal, Self

HOST = "127.0.0.1"
CHUNK_BYTES = 65_536

LinkFault = Literal["cut", "black_hole", "delay", "drop_reply", "half_open"]


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.down_reader = reader
        self.down = writer
        self.up_reader: asyncio.StreamReader | None = None
        self.up: asyncio.StreamWriter | None = None
        self.drops_reply = False
        self.hollow = False
        """The server's side is gone and the client was not told."""

    def abort(self) -> None:
        for writer in (self.down, self.up):
            if writer is not None:
                writer.transport.abort()


class Link:
    """Forwards a port of its own to ``target_port``, in the way that its fault says.

    Bytes that a black hole held are delivered when it ends, as a network does that comes back: a
    command may run long after its caller gave up.
    """

    def __init__(self, name: str, target_port: int, *, marker: bytes) -> None:
        self.name = name
        self.target_port = target_port
        self.marker = marker
        """Tells a request whose reply is worth dropping: one that changes something."""
        self.dropped_replies = 0
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._healed = asyncio.Event()
        self._healed.set()
        self._is_cut = False
        self._drops = False
        self._delay_seconds = 0.0

    @property
    def port(self) -> int:
        assert self._server is not None
        return self._server.sockets[0].getsockname()[1]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        self.heal()
        self.sever()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def break_by(self, fault: LinkFault, *, delay_seconds: float = 0.1) -> None:
        match fault:
            case "cut":
                self._is_cut = True
                self.sever()
            case "black_hole":
                self._flowing.clear()
            case "delay":
                self._delay_seconds = delay_seconds
            case "drop_reply":
                self._drops = True
            case "half_open":
                self._healed.clear()
                for connection in self._connections:
                    connection.hollow = True
                    if connection.up is not None:
                        connection.up.transport.abort()

    def heal(self) -> None:
        self._is_cut = self._drops = False
        self._delay_seconds = 0.0
        self._flowing.set()
        self._healed.set()

    def sever(self) -> None:
        for connection in list(self._connections):
            connection.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        connection = _Connection(reader, writer)
        self._connections.add(connection)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._forward(connection)
        finally:
            self._connections.discard(connection)
            self._tasks.discard(task)
            connection.abort()

    async def _forward(self, connection: _Connection) -> None:
        await self._flowing.wait()
        connection.up_reader, connection.up = await asyncio.open_connection(HOST, self.target_port)
        pumps = [
            asyncio.create_task(self._upwards(connection)),
            asyncio.create_task(self._downwards(connection)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if connection.hollow:
                await self._healed.wait()
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _upwards(self, connection: _Connection) -> None:
        assert connection.up is not None
        while data := await connection.down_reader.read(CHUNK_BYTES):
            if self._drops and self.marker in data:
                self._drops = False
                connection.drops_reply = True
            await self._pass(connection.up, data)

    async def _downwards(self, connection: _Connection) -> None:
        assert connection.up_reader is not None
        while data := await connection.up_reader.read(CHUNK_BYTES):
            if connection.drops_reply:
                self.dropped_replies += 1
                return
            await self._pass(connection.down, data)

    async def _pass(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if self._delay_seconds:
            await asyncio.sleep(self._delay_seconds)
        await self._flowing.wait()
        writer.write(data)
        await writer.drain()

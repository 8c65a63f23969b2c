"""The whole service as it is deployed, with a link that can break between each two of its parts."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.chaos.processes import ServiceProcess
from tests.chaos.proxy import Link
from tests.chaos.schedule import LINKS, SERVICES
from tests.chaos.stores import Postgres, RedisPair
from tests.support.model_server import ModelServer

# A request whose lost reply matters: it has run.
MARKERS = {"redis": b"EVALSHA", "postgres": b"COMMIT", "model": b"POST ", "api": b"POST "}
READS = b""
"""The API commits nothing to PostgreSQL: there any reply is as good as another."""

# Short, so that what takes minutes in production happens within a run.
ENVIRONMENT = {
    "STORE": "hybrid",
    "JOURNAL_SHARDS": "8",
    "HOT_MESSAGES_MAX": "40",
    "SESSION_TTL_SECONDS": "60",
    "SHARD_LEASE_SECONDS": "1.5",
    "TURN_LEASE_SECONDS": "2",
    "TURN_DEADLINE_SECONDS": "15",
    "DATABASE_POOL_SIZE": "4",
    "DATABASE_TIMEOUT_SECONDS": "3",
    "ARCHIVE_WAIT_SECONDS": "3",
    "SHUTDOWN_GRACE_SECONDS": "4",
    "REQUEST_TIMEOUT_SECONDS": "10",
    "MODEL_BREAKER_SECONDS": "1",
    "OPENAI_API_KEY": "chaos",
    "OPENAI_MODEL": "chaos",
    "LOG_LEVEL": "error",
}


class Stack:
    """What faults are done to."""

    def __init__(self, folder: Path) -> None:
        self.postgres = Postgres(folder / "postgres")
        self.redis = RedisPair(folder, self._move_redis)
        self.model = ModelServer()
        self.services: dict[str, ServiceProcess] = {}
        self.links: dict[str, Link] = {}

    def url_of(self, api: str) -> str:
        """Through the link of the clients."""
        return f"http://127.0.0.1:{self.links[f'clients-{api}'].port}"

    def heal(self) -> None:
        for link in self.links.values():
            link.heal()
        for service in self.services.values():
            service.resume()
            service.revive()

    def _move_redis(self, port: int) -> None:
        """Clients of a failed-over Redis find the new one, and their connections to the old end."""
        for name, link in self.links.items():
            if name.endswith("-redis"):
                link.target_port = port
                link.sever()


@asynccontextmanager
async def running_stack(
    folder: Path, *, environment: Mapping[str, str], module: str
) -> AsyncGenerator[Stack]:
    stack = Stack(folder)
    async with AsyncExitStack() as exits:
        for store in (stack.postgres, stack.redis):
            exits.push_async_callback(store.stop)
            await store.start()
        await exits.enter_async_context(stack.model)
        model_port = urlsplit(stack.model.base_url).port
        assert model_port is not None
        ports = {"redis": stack.redis.port, "postgres": stack.postgres.port, "model": model_port}
        for name in LINKS:
            server = name.split("-")[1]
            reads = name.startswith("api") and server == "postgres"
            marker = READS if reads else MARKERS[server.rstrip("01")]
            # Where a process listens is known only when there is one.
            link = Link(name, ports.get(server, 0), marker=marker)
            stack.links[name] = await exits.enter_async_context(link)
        for name in SERVICES:
            word = "serve" if name.startswith("api") else "flush"
            of_process = ENVIRONMENT | _addresses(stack, name) | dict(environment)
            service = ServiceProcess(name, [word], of_process, folder, module=module)
            stack.services[name] = service
            exits.push_async_callback(service.stop)
            if word == "serve":
                stack.links[f"clients-{name}"].target_port = service.port
            service.start()
        for service in stack.services.values():
            await service.until_ready()
        yield stack
        stack.heal()


def _addresses(stack: Stack, name: str) -> dict[str, str]:
    redis, postgres = stack.links[f"{name}-redis"], stack.links[f"{name}-postgres"]
    database = urlsplit(stack.postgres.url)
    credentials = database.netloc.rpartition("@")[0]
    addresses = {
        "REDIS_URL": f"redis://127.0.0.1:{redis.port}/0",
        "DATABASE_URL": f"postgresql://{credentials}@127.0.0.1:{postgres.port}{database.path}",
    }
    if link := stack.links.get(f"{name}-model"):
        addresses["OPENAI_BASE_URL"] = f"http://127.0.0.1:{link.port}/v1"
    return addresses

"""A SPIRE server and one agent on loopback, for the length of a test, and their entries.

    async with running(directory) as spire:
        await spire.register("spiffe://cluster.local/ns/default/sa/web", uid=20001)

The agent attests processes by their user id (`unix` attestor). All three of its interfaces are open: the
Workload API, Delegated Identity for the proxy's own SPIFFE id, and the Broker API for it.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

TRUST_DOMAIN = "cluster.local"
NODE = f"spiffe://{TRUST_DOMAIN}/node/lab"
PROXY = f"spiffe://{TRUST_DOMAIN}/ns/istio-system/sa/ztunnel"
READY_SECONDS = 30.0


@dataclass(eq=False)
class RealSpire:
    """The two programs and the directory they live in."""

    directory: Path
    binaries: Path
    lifetime: str = "1h"
    port: int = 0
    _programs: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    _entries: dict[str, str] = field(default_factory=dict)

    @property
    def admin_socket(self) -> Path:
        return self.directory / "admin" / "admin.sock"

    @property
    def workload_socket(self) -> Path:
        return self.directory / "workload" / "agent.sock"

    @property
    def broker_socket(self) -> Path:
        return self.directory / "broker" / "broker.sock"

    async def start_server(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        (self.directory / "server.conf").write_text(f"""
server {{
    bind_address = "127.0.0.1"
    bind_port = "{self.port}"
    socket_path = "{self.directory}/server.sock"
    trust_domain = "{TRUST_DOMAIN}"
    data_dir = "{self.directory}/server"
    log_level = "WARN"
    default_x509_svid_ttl = "{self.lifetime}"
    agent_ttl = "1h"
    ca_ttl = "24h"
}}
plugins {{
    DataStore "sql" {{
        plugin_data {{
            database_type = "sqlite3"
            connection_string = "{self.directory}/server.sqlite3"
        }}
    }}
    NodeAttestor "join_token" {{ plugin_data {{}} }}
    KeyManager "memory" {{ plugin_data {{}} }}
}}
""")
        self._start("server", "spire-server", "run", "-config", str(self.directory / "server.conf"))
        await self._until(lambda: self._ask("healthcheck") is not None)

    async def start_agent(self) -> None:
        """Start it with a new join token; the entries hang on the node's alias."""
        for path in (self.admin_socket, self.workload_socket, self.broker_socket):
            path.parent.mkdir(exist_ok=True)
        told = self._ask("token", "generate", "-spiffeID", NODE, "-output", "json")
        assert told is not None
        token = json.loads(told)["value"]
        (self.directory / "agent.conf").write_text(f"""
agent {{
    data_dir = "{self.directory}/agent"
    log_level = "WARN"
    server_address = "127.0.0.1"
    server_port = "{self.port}"
    socket_path = "{self.workload_socket}"
    admin_socket_path = "{self.admin_socket}"
    trust_domain = "{TRUST_DOMAIN}"
    insecure_bootstrap = true
    join_token = "{token}"
    authorized_delegates = ["{PROXY}"]
    experimental {{
        sync_interval = "1s"
        broker {{
            socket_path = "{self.broker_socket}"
            brokers = [{{ id = "{PROXY}", allowed_reference_types = [{{ type_url = "*" }}] }}]
        }}
    }}
}}
plugins {{
    NodeAttestor "join_token" {{ plugin_data {{}} }}
    KeyManager "memory" {{ plugin_data {{}} }}
    WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
""")
        self._start("agent", "spire-agent", "run", "-config", str(self.directory / "agent.conf"))
        await self._until(self.admin_socket.exists)

    async def kill_agent(self) -> None:
        """End the agent at once, as a crash does; its data goes with it."""
        self._end("agent", signal.SIGKILL)
        for path in (self.admin_socket, self.workload_socket, self.broker_socket):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.directory / "agent", ignore_errors=True)
        await trio.lowlevel.checkpoint()

    async def register(self, identity: str, *, uid: int) -> None:
        """Make an entry for whatever runs under a user id, and wait until the server has it."""
        command = ("entry", "create", "-parentID", NODE, "-spiffeID", identity)
        told = self._ask(*command, "-selector", f"unix:uid:{uid}", "-output", "json")
        assert told is not None
        self._entries[identity] = json.loads(told)["results"][0]["entry"]["id"]
        await trio.lowlevel.checkpoint()

    async def withdraw(self, identity: str) -> None:
        """Remove an entry."""
        assert self._ask("entry", "delete", "-entryID", self._entries.pop(identity)) is not None
        await trio.lowlevel.checkpoint()

    async def rotate_authority(self) -> None:
        """Prepare a new X.509 authority, whose root overlaps with the old one, and use it."""
        told = self._ask("localauthority", "x509", "prepare", "-output", "json")
        assert told is not None
        authority = json.loads(told)["prepared_authority"]["authority_id"]
        await trio.sleep(8)  # the prepared root is in every bundle before anybody is certified by it
        assert self._ask("localauthority", "x509", "activate", "-authorityID", authority) is not None

    def stop(self) -> None:
        for name in list(self._programs):
            self._end(name, signal.SIGKILL)

    def log_of(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()

    def _ask(self, *words: str) -> str | None:
        """What a command of the server answers; None when it fails."""
        done = subprocess.run(
            [
                self.binaries / "spire-server",
                *words,
                "-socketPath",
                f"{self.directory}/server.sock",
            ],
            capture_output=True,
            text=True,
            timeout=30,
        )
        return done.stdout if done.returncode == 0 else None

    def _start(self, name: str, *command: str) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self._programs[name] = subprocess.Popen(
                [self.binaries / command[0], *command[1:]], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def _end(self, name: str, number: int) -> None:
        program = self._programs.pop(name)
        os.kill(program.pid, number)
        program.wait(10)

    async def _until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(READY_SECONDS):
            while not condition():
                for name, program in self._programs.items():
                    assert program.poll() is None, self.log_of(name)
                await trio.sleep(0.1)


@asynccontextmanager
async def running(
    directory: Path, binaries: Path, *, lifetime: str = "1h"
) -> AsyncGenerator[RealSpire, None]:
    """Server and agent for the body's time; the proxy, which runs as root, has its entry."""
    spire = RealSpire(directory, binaries, lifetime)
    try:
        await spire.start_server()
        await spire.register(PROXY, uid=0)
        await spire.start_agent()
        yield spire
    finally:
        spire.stop()

"""Where an agent listens: a Unix socket of this machine, or TCP."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UnixPath:
    """A Unix stream socket by its absolute path."""

    path: str

    def __str__(self) -> str:
        return f"unix://{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host name or address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"


SocketTarget = UnixPath | TcpAddress

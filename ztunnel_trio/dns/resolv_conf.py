"""What `/etc/resolv.conf` and `/etc/hosts` say (resolv.conf(5), hosts(5)).

Both are read leniently, as every resolver does: a line that makes no sense is not there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from ztunnel_trio.errors import ConfigError
from ztunnel_trio.model.address import IPAddress, SocketAddress

HOSTS: Final = Path("/etc/hosts")
SERVER_PORT: Final = 53
MAX_NDOTS: Final = 15  # glibc: RES_MAXNDOTS
MAX_TIMEOUT_SECONDS: Final = 30  # glibc: RES_MAXRETRANS
MAX_ATTEMPTS: Final = 5  # glibc: RES_MAXRETRY


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvConf:
    """The resolvers to ask and how. `attempts` are those that follow the first one (hickory-resolver)."""

    servers: tuple[SocketAddress, ...]
    domain: str | None = None
    search: tuple[str, ...] = ()
    ndots: int = 1
    timeout_seconds: float = 5.0
    attempts: int = 2
    edns0: bool = False


def parse_resolv_conf(text: str) -> ResolvConf:
    """Read a resolv.conf; of several `search` or `domain` lines the last one counts.

    Raises:
        ConfigError: it names no server.
    """
    servers: list[SocketAddress] = []
    domain: str | None = None
    search: tuple[str, ...] = ()
    options: dict[str, str] = {}
    for line in _lines(text, ";"):
        match line.split():
            case ["nameserver", address, *_]:
                ip = _address(address)
                if ip is not None:
                    servers.append(SocketAddress(ip, SERVER_PORT))
            case ["domain", name, *_]:
                domain = _domain(name)
            case ["search", *names]:
                search = tuple(_domain(name) for name in names)
            case ["options", *words]:
                for word in words:
                    key, _, value = word.partition(":")
                    options[key] = value
    if not servers:
        raise ConfigError("no name servers found in resolv.conf")
    return ResolvConf(
        servers=tuple(dict.fromkeys(servers)),
        domain=domain,
        search=search,
        ndots=_number(options.get("ndots"), default=1, least=0, most=MAX_NDOTS),
        timeout_seconds=_number(options.get("timeout"), default=5, least=1, most=MAX_TIMEOUT_SECONDS),
        attempts=_number(options.get("attempts"), default=2, least=1, most=MAX_ATTEMPTS),
        edns0="edns0" in options,
    )


def parse_hosts(text: str) -> Mapping[str, tuple[IPAddress, ...]]:
    """Addresses by lower-case name without trailing dot, in the order of the file."""
    found: dict[str, list[IPAddress]] = {}
    for line in _lines(text, ""):
        address, *names = line.split()
        ip = _address(address)
        if ip is not None:
            for name in names:
                found.setdefault(name.lower().removesuffix("."), []).append(ip)
    return {name: tuple(dict.fromkeys(addresses)) for name, addresses in found.items()}


def read_hosts(path: Path = HOSTS) -> Mapping[str, tuple[IPAddress, ...]]:
    """Read and parse the file; one that cannot be read names nobody."""
    try:
        return parse_hosts(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return {}


def _lines(text: str, also_comments: str) -> Iterator[str]:
    """The lines that are neither blank nor comments, without what follows a `#`."""
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        if line and not (also_comments and line.startswith(also_comments)):
            yield line


def _address(text: str) -> IPAddress | None:
    """An IP without scope: a scoped one means an interface of a namespace that is not the pod's."""
    try:
        return None if "%" in text else ip_address(text)
    except ValueError:
        return None


def _domain(text: str) -> str:
    return text.lower().removesuffix(".")


def _number(text: str | None, *, default: int, least: int, most: int) -> int:
    if text is None or not (text.isascii() and text.isdigit()):
        return default
    return min(max(int(text[:6]), least), most)

"""How the values of settings are read: booleans, numbers, durations, CPU quantities, URIs, addresses.

Each function takes text and returns a value or raises `ConfigError` with the reason alone; `config.load`
puts the variable's name and value around it. The forms are those of ztunnel src/config.rs.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from ipaddress import IPv6Address
from typing import Final

from ztunnel_trio.errors import ConfigError, PeerBrokeProtocol
from ztunnel_trio.model.address import SocketAddress, parse_port
from ztunnel_trio.model.socket_target import SocketTarget, TcpAddress, UnixPath

NANOSECONDS: Final = 1_000_000_000
MOST_NANOSECONDS: Final = 2**64 - 1

UNITS: Final = {
    name: Fraction(nanoseconds, NANOSECONDS)
    for names, nanoseconds in (
        ("y year years", 365 * 86400 * NANOSECONDS),
        ("mon month months", 30 * 86400 * NANOSECONDS),
        ("w week weeks", 7 * 86400 * NANOSECONDS),
        ("d day days", 86400 * NANOSECONDS),
        ("h hr hour hours", 3600 * NANOSECONDS),
        ("m min minute minutes", 60 * NANOSECONDS),
        ("s sec second seconds", NANOSECONDS),
        ("ms msec millisecond milliseconds", 1_000_000),
        ("µs µsec µsecond us usec usecond microsecond microseconds", 1000),
        ("ns nsec nanosecond nanoseconds", 1),
    )
    for name in names.split()
}
TERM: Final = re.compile(r"\s*([0-9]+)\s*([^\W\d_]*)\s*")
MU: Final = str.maketrans({"\u03bc": "\u00b5"})  # Greek mu, as some keyboards write the micro sign


def parse_bool(text: str) -> bool:
    """Exactly `true` or `false`."""
    if text in ("true", "false"):
        return text == "true"
    raise ConfigError("provided string was not `true` or `false`")


def parse_unsigned(text: str, bits: int) -> int:
    """Decimal digits, perhaps after a plus sign, that fit that many bits."""
    digits = text.removeprefix("+")
    if not text:
        raise ConfigError("cannot parse integer from empty string")
    if not (digits.isascii() and digits.isdigit()):
        raise ConfigError("invalid digit found in string")
    if len(digits.lstrip("0")) > 20 or int(digits) >= 1 << bits:
        raise ConfigError("number too large to fit in target type")
    return int(digits)


def parse_duration(text: str) -> float:
    """Seconds of `number [unit] (op number [unit])*`, op being `+`, nothing, or `*`.

    Terms without unit are seconds; `+` and `*` do not mix; products multiply seconds.
    """
    if not text:
        raise ConfigError("Empty input")
    operator, position = "", 0
    terms: list[Fraction] = []
    while position < len(text):
        if terms:
            found = text[position] if text[position] in "+*" else "+"
            if operator and found != operator:
                raise ConfigError("'+' and '*' cannot be mixed")
            operator = found
            position += text[position] in "+*"
        term = TERM.match(text, position)
        if term is None or len(term[1]) > 20:
            raise ConfigError(f"expected a number at position {position}")
        unit = UNITS.get(term[2].lower().translate(MU)) if term[2] else Fraction(1)
        if unit is None:
            raise ConfigError(f"unknown unit: {term[2]}")
        terms.append(int(term[1]) * unit)
        position = term.end()
    total = math.prod(terms) if operator == "*" else sum(terms, Fraction(0))
    if total * NANOSECONDS > MOST_NANOSECONDS:
        raise ConfigError("overflow")
    return float(total)


def parse_cpus(text: str) -> int:
    """A CPU quantity, `2`, `1.5` or `1500m`, rounded up to whole CPUs."""
    milli = text.endswith("m")
    number = parse_float(text[:-1] if milli else text, "invalid float literal")
    if not (math.isfinite(number) and number > 0):
        raise ConfigError("must be a positive CPU quantity")
    return math.ceil(Fraction(number) / 1000 if milli else number)


def parse_float(text: str, reason: str) -> float:
    """A decimal float without blanks or underscores; anything else fails for `reason`."""
    if not re.fullmatch(
        r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(inf|infinity|nan)", text, re.IGNORECASE
    ):
        raise ConfigError(reason)
    return float(text)


def parse_threads(text: str, cpus: int) -> int:
    """A thread count: `N`, `0` for all CPUs, or `N%` of them, at least one."""
    if text.endswith("%"):
        share = parse_float(text[:-1], f"invalid percentage: {text[:-1]}")
        if not 0 < share <= 100:
            raise ConfigError("percentage must be between 0 and 100")
        return max(1, math.ceil(cpus * Fraction(share) / 100))
    try:
        number = parse_unsigned(text, 64)
    except ConfigError as error:
        raise ConfigError(f"invalid number: {error}") from None
    return max(1, number or cpus)


@dataclass(frozen=True, slots=True)
class ControlPlaneAddress:
    """A control plane's or CA's address. `text` is the URI with its scheme, as operators see it."""

    scheme: str
    host: str
    port: int
    text: str

    def __str__(self) -> str:
        return self.text


URI: Final = re.compile(
    r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://)?"
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+))"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>[/?][\x21-\x7e]*)?"
)
PORTS: Final = {"http": 80, "https": 443}


def parse_uri(text: str) -> ControlPlaneAddress:
    """A URI with host; `https://` is put before one without scheme."""
    found = URI.fullmatch(text)
    if found is None:
        raise ConfigError(f"invalid uri: {text}")
    scheme = (found["scheme"] or "https").lower()
    port = int(found["port"]) if found["port"] else PORTS.get(scheme, 443)
    if scheme not in PORTS or port > 65535:
        raise ConfigError(f"invalid uri: {text}")
    host = found["host"]
    if found["v6"]:
        try:
            host = str(IPv6Address(found["v6"]))
        except ValueError:
            raise ConfigError(f"invalid uri: {text}") from None
    return ControlPlaneAddress(scheme, host, port, text if found["scheme"] else f"https://{text}")


@dataclass(frozen=True, slots=True)
class Localhost:
    """Loopback on a port: IPv4, and IPv6 where that is usable."""

    ipv6: bool
    port: int


ListenAddress = Localhost | SocketAddress


def parse_listen_address(text: str, *, ipv6: bool) -> ListenAddress:
    """`localhost:PORT` or `IP:PORT`."""
    host, colon, port = text.rpartition(":")
    try:
        if colon and host == "localhost":
            return Localhost(ipv6, parse_port(port))
        return SocketAddress.parse(text)
    except PeerBrokeProtocol as error:
        raise ConfigError(str(error)) from None


HEADER_KEY: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")  # RFC 9110 5.6.2, lower case as HTTP/2 wants
HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")


def parse_header(variable: str, prefix: str, value: str) -> tuple[str, str]:
    """A gRPC metadata pair: the name behind the prefix in lower case, and the value."""
    name = variable.removeprefix(prefix).lower()
    if not HEADER_KEY.fullmatch(name) or name.endswith("-bin"):
        raise ConfigError(f"failed to parse header key: {variable}")
    if not HEADER_VALUE.fullmatch(value):
        raise ConfigError(f"failed to parse header value: {value}")
    return name, value


def parse_socket(text: str) -> SocketTarget:
    """`unix:///absolute/path`, `unix:/absolute/path` or `tcp://host:port`; no other parts of a URI."""
    scheme, colon, rest = text.partition(":")
    match scheme if colon else None:
        case "unix":
            path = rest.removeprefix("//") if rest.startswith("///") else rest
            if re.fullmatch(r"/[^/?#][^?#]*", path):
                return UnixPath(path)
            raise ConfigError("a unix socket is named by an absolute path")
        case "tcp" if rest.startswith("//"):
            host, colon, port = rest.removeprefix("//").rpartition(":")
            if host and colon and not set(host) & set("/?#@"):
                return TcpAddress(host.removeprefix("[").removesuffix("]"), parse_unsigned(port, 16))
            raise ConfigError("a tcp socket is named by host and port")
        case _:
            raise ConfigError("must begin with unix: or tcp:")

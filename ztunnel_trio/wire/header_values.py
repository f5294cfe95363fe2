"""Values of the headers an HBONE CONNECT carries: baggage, traceparent, forwarded, x-forwarded-network.

Header values travel as bytes, because what a peer sends need not be text. None of these headers is
required: a value that breaks its format counts as absent, so the parsers answer None and raise nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

from ztunnel_trio.errors import WeBrokeProtocol
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.baggage import Baggage
from ztunnel_trio.model.workload import Workload

BAGGAGE: Final = b"baggage"
FORWARDED: Final = b"forwarded"
TRACEPARENT: Final = b"traceparent"
X_FORWARDED_NETWORK: Final = b"x-forwarded-network"  # where a connection through an east-west gateway began

TRACE_BYTES: Final = 24  # chance a traceparent needs: 16 for the trace id, 8 for the parent id
_TRACEPARENT_BYTES: Final = 55  # W3C trace context 3.2.2
_HEX_DIGITS: Final = b"0123456789abcdefABCDEF"
_LONGEST_VALUE: Final = 253  # of a baggage member: no name of Kubernetes is longer, and it becomes a label


# ---- baggage (ztunnel src/baggage.rs) ------------------------------------------------------------

_MEMBERS: Final = {
    "k8s.cluster.name": "cluster",
    "k8s.namespace.name": "namespace",
    "k8s.deployment.name": "workload_name",
    "k8s.cronjob.name": "workload_name",
    "k8s.pod.name": "workload_name",
    "k8s.job.name": "workload_name",
    "service.name": "service_name",
    "service.version": "revision",
    "cloud.region": "region",
    "cloud.availability_zone": "zone",
}


def encode_baggage(workload: Workload) -> bytes:
    """What a workload tells of itself: `key=value` joined by commas, empty members left out, no escaping."""
    members = (
        ("k8s.cluster.name", workload.cluster),
        ("k8s.namespace.name", workload.namespace),
        (f"k8s.{workload.workload_type}.name", workload.workload_name),
        ("service.name", workload.canonical_name),
        ("service.version", workload.canonical_revision),
        ("cloud.region", workload.locality.region),
        ("cloud.availability_zone", workload.locality.zone),
    )
    return _header_text(",".join([f"{key}={value}" for key, value in members if value]))


def parse_baggage(lines: Iterable[bytes]) -> Baggage | None:
    """Read all baggage header lines of a message; later members win, unknown ones are skipped, long ones cut.

    None when there is no line, or one that is not visible ASCII: then nothing of the header is believed.
    """
    every = tuple(lines)
    short = sum(map(len, every)) <= _REMEMBERED_BYTES
    return _parse_remembered(every) if short else _parse_baggage(every)


def _parse_baggage(lines: tuple[bytes, ...]) -> Baggage | None:
    found: dict[str, str | None] = {}
    seen = False
    for line in lines:
        seen = True
        text = _visible_ascii(line)
        if text is None:
            return None
        for member in text.split(","):
            parts = member.split("=")
            if len(parts) > 1 and (name := _MEMBERS.get(parts[0])) is not None:
                found[name] = parts[1][:_LONGEST_VALUE] or None
    return Baggage(**found) if seen else None


_REMEMBERED_BYTES: Final = 1024
_parse_remembered: Final = lru_cache(maxsize=1024)(_parse_baggage)  # a workload sends the same all its life


# ---- traceparent (W3C trace context, 3.2) --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TraceParent:
    """One connection's trace: 32 and 16 lower-case hexadecimal digits. Prints as the header's value."""

    trace_id: str
    parent_id: str
    version: str = "00"
    flags: str = "00"

    def __str__(self) -> str:
        return f"{self.version}-{self.trace_id}-{self.parent_id}-{self.flags}"

    @classmethod
    def generate(cls, chance: bytes) -> Self:
        """A fresh trace out of `TRACE_BYTES` random bytes.

        Raises:
            WeBrokeProtocol: another number of bytes.
        """
        if len(chance) != TRACE_BYTES:
            raise WeBrokeProtocol(f"a traceparent takes {TRACE_BYTES} random bytes, not {len(chance)}")
        digits = chance.hex()
        return cls(digits[:32], digits[32:])

    @classmethod
    def parse(cls, value: bytes | None) -> Self | None:
        """Read a header's value; None for anything but 55 characters of four hexadecimal parts."""
        if value is None or len(value) != _TRACEPARENT_BYTES:
            return None
        if value.translate(None, _HEX_DIGITS) != b"---":
            return None
        text = value.decode("ascii").lower()
        if not text[2] == text[35] == text[52] == "-":
            return None
        return cls(text[3:35], text[36:52], text[:2], text[53:])


# ---- forwarded (RFC 7239 in the form ztunnels speak it) ------------------------------------------


def encode_forwarded(client: SocketAddress, service: str | None) -> bytes:
    """`for="ip:port"`, then the hostname of the service meant by the client where it is known, unquoted."""
    text = f'for="{client}"' if service is None else f'for="{client}";host={service}'
    return _header_text(text)


def parse_forwarded_host(value: bytes | None) -> str | None:
    """The first `host=` of a forwarded header; one pair of quotes is taken off, an empty host is none.

    Only telemetry uses it: the client's word about the service it meant.
    """
    if value is None or (text := _visible_ascii(value)) is None:
        return None
    for part in text.split(";"):
        part = part.strip()
        if part.startswith("host="):
            return part.removeprefix("host=").removeprefix('"').removesuffix('"') or None
    return None


# ---- x-forwarded-network -------------------------------------------------------------------------


def came_through_gateway(value: bytes | None, local_network: str) -> bool:
    """Whether a CONNECT began in another network: its peer address is then a gateway's, not the source's.

    Networks are compared without ASCII case; an empty value means an empty (the default) network.
    """
    return value is not None and value.lower() != local_network.encode().lower()


def _header_text(text: str) -> bytes:
    """A header's value. What a header cannot carry becomes `_`: no name of istiod's breaks a message."""
    if text.isascii() and text.isprintable():
        return text.encode("ascii")
    return "".join(c if c.isascii() and c.isprintable() else "_" for c in text).encode("ascii")


def _visible_ascii(value: bytes) -> str | None:
    """Text of visible ASCII, spaces and tabs (http crate, HeaderValue::to_str); None for anything else."""
    if not value.isascii():
        return None
    text = value.decode("ascii")
    return text if text.replace("\t", " ").isprintable() else None

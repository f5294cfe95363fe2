"""How an attempt, a connection, a stream or a tunnel ended: one closed union of values.

Whoever learns of an end makes one of these; whoever decides matches it; `observe.words` alone turns it into
the words operators know. No decision is ever taken on text.

Only `Clean` is an end of data that both sides meant: END_STREAM of a stream, FIN of a plain connection. All
others are passed on as RST_STREAM or a TCP reset.

| What happened                                   | Value                             |
|-------------------------------------------------|-----------------------------------|
| both directions had their end of data           | `Clean`                           |
| a system call failed                            | `SystemFailure`                   |
| our own time limit                              | `DeadlinePassed`                  |
| no TLS connection                               | `TlsRefused`                      |
| TLS with somebody else than it has to be        | `PeerUnexpected`, `OtherTrustDomain` |
| RST_STREAM                                      | `StreamReset`                     |
| the peer did nothing with the request           | `NotProcessed`                    |
| the tunnel under it ended                       | `TunnelLost`                      |
| a CONNECT was answered, but not with 200        | `AnsweredStatus`                  |
| we ended it                                     | `PolicyChanged`, `Revoked`, `Drained`, `PodGone` |
| an application reset its connection             | `ApplicationReset`                |
| one direction of a relay failed                 | `DirectionFailed`                 |
| the other side was gone, and bytes were left    | `BytesLeftOver`                   |
| a fault of ours                                 | `Bug`                             |
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from ztunnel_trio.model.identity import SpiffeId


class Flow(Enum):
    """A direction of a connection, as seen from whoever opened it."""

    TO_DESTINATION = "to the destination"
    TO_SOURCE = "to the source"


class By(Enum):
    """Whose step it was."""

    PEER = "the peer"
    US = "us"


# -- the operating system and time


@dataclass(frozen=True, slots=True)
class Clean:
    """Both directions had their end of data, and it was passed on."""


CLEAN: Final = Clean()


@dataclass(frozen=True, slots=True)
class SystemFailure:
    """A system call failed with this number (`errno`)."""

    number: int


@dataclass(frozen=True, slots=True)
class OtherFailure:
    """An I/O failure without a number of the system's; `text` is a library's own."""

    text: str


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """A time limit of ours was used up."""


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """A CONNECT was not answered within the time it has."""


# -- TLS


class TlsCause(Enum):
    """Why there is no TLS connection, where nothing else has to be said."""

    NO_CERTIFICATE = "the peer showed no certificate"
    UNREADABLE_NAMES = "names in the peer's certificate are not text"
    NO_COMMON_PROTOCOL = "the peer offers application protocols, but not ours"
    NOT_TLS = "what came is not TLS"
    ENDED = "the connection ended during the handshake"


class Invalid(Enum):
    """What OpenSSL found wrong with a peer's chain."""

    UNKNOWN_ISSUER = "no root of ours signed it"
    BAD_SIGNATURE = "a signature is wrong"
    NOT_YET_VALID = "its time has not come"
    EXPIRED = "its time is over"
    REVOKED = "it was revoked"
    WRONG_PURPOSE = "it may not be used for this"


@dataclass(frozen=True, slots=True)
class CertificateInvalid:
    """The peer's chain did not verify; `found` is text where OpenSSL's finding has no name here."""

    found: Invalid | str


@dataclass(frozen=True, slots=True)
class AlertReceived:
    """The peer ended TLS with a fatal alert; `name` is RFC 8446 6's, in upper case: `UNKNOWN_CA`."""

    name: str


@dataclass(frozen=True, slots=True)
class TlsLibrary:
    """OpenSSL failed in a way of its own; `reason` is its reason or its text."""

    reason: str


@dataclass(frozen=True, slots=True)
class TlsRefused:
    """No TLS connection came about, or one broke."""

    cause: TlsCause | CertificateInvalid | AlertReceived | TlsLibrary


@dataclass(frozen=True, slots=True)
class PeerUnexpected:
    """A server proved another identity than those we dialled."""

    wanted: tuple[SpiffeId, ...]
    got: tuple[SpiffeId, ...]


@dataclass(frozen=True, slots=True)
class OtherTrustDomain:
    """A client has no identity of our trust domain."""

    wanted: str
    got: tuple[SpiffeId, ...]


# -- streams and tunnels; codes are those of RFC 9113 7


@dataclass(frozen=True, slots=True)
class StreamReset:
    """RST_STREAM: sent by the peer, or by us because it broke the rules of the stream or we gave it up."""

    code: int
    by: By = By.PEER


@dataclass(frozen=True, slots=True)
class NotProcessed:
    """The peer did nothing with the request (RFC 9113 8.7): GOAWAY below it, or REFUSED_STREAM.

    It may be sent again on another tunnel. `code` is what came with the GOAWAY or RST_STREAM.
    """

    code: int


@dataclass(frozen=True, slots=True)
class TransportEnded:
    """FIN or close_notify while the tunnel had streams."""


@dataclass(frozen=True, slots=True)
class PeerSilent:
    """PING was not answered in time."""


@dataclass(frozen=True, slots=True)
class GoAway:
    """GOAWAY: `by` says who found the connection at an end, `code` why."""

    code: int
    by: By = By.PEER


@dataclass(frozen=True, slots=True)
class Revoked:
    """The peer's certificate was revoked."""


@dataclass(frozen=True, slots=True)
class Drained:
    """Our grace period for open connections is over."""


@dataclass(frozen=True, slots=True)
class PodGone:
    """The pod was deleted."""


@dataclass(frozen=True, slots=True)
class Bug:
    """A fault of ours; `text` describes the exception."""

    text: str


Loss = (
    TransportEnded
    | PeerSilent
    | GoAway
    | SystemFailure
    | OtherFailure
    | TlsRefused
    | Revoked
    | Drained
    | PodGone
    | Bug
)
"""Why a tunnel ended."""


@dataclass(frozen=True, slots=True)
class TunnelLost:
    """The tunnel ended, and with it a stream that had not."""

    cause: Loss


@dataclass(frozen=True, slots=True)
class AnsweredStatus:
    """A CONNECT was answered with this HTTP status."""

    status: int


# -- what we decide


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """Authorization allows it no more."""


# -- the two directions of a relay


@dataclass(frozen=True, slots=True)
class ApplicationReset:
    """The application of either side reset its connection. Passed on, and no error of the mesh's.

    ztunnel src/copy.rs: ignore_io_errors.
    """


@dataclass(frozen=True, slots=True)
class BytesLeftOver:
    """Bytes came for a side that was gone."""


Failure = (
    SystemFailure
    | OtherFailure
    | DeadlinePassed
    | StreamReset
    | NotProcessed
    | TunnelLost
    | BytesLeftOver
    | Bug
)
"""Why one direction of a relay failed."""


@dataclass(frozen=True, slots=True)
class DirectionFailed:
    """One direction of a relay failed; `while_closing`: with its last word, after all data."""

    flow: Flow
    cause: Failure
    while_closing: bool = False


Ending = (
    Clean
    | SystemFailure
    | OtherFailure
    | DeadlinePassed
    | NoAnswer
    | TlsRefused
    | PeerUnexpected
    | OtherTrustDomain
    | StreamReset
    | NotProcessed
    | TunnelLost
    | AnsweredStatus
    | PolicyChanged
    | Revoked
    | Drained
    | PodGone
    | ApplicationReset
    | DirectionFailed
    | BytesLeftOver
    | Bug
)
"""How something ended. Match it with `assert_never` at the end: the union is closed."""

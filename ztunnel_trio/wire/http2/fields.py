"""The header fields of a CONNECT request and of its answer, checked as RFC 9113 8.1–8.5 asks.

Apart from the frames because a malformed header list ends one stream, a malformed frame the connection.
What every connection brings is checked by methods of `str` and `bytes`; regular expressions look only at
what these do not clear.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.compression import FIELD_OVERHEAD, Field

Fields = dict[str, list[str]]

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")  # RFC 9110 5.1, lower case as RFC 9113 8.2.1 asks
_BAD_VALUE: Final = re.compile(rb"[\x00\r\n]|^[ \t]|[ \t]$")  # RFC 9113 8.2.1
_UNRESERVED: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"  # RFC 3986 2.3
_HOST: Final = _UNRESERVED + b"%!$&'()*+,;="  # RFC 3986 3.2.2, reg-name
_LITERAL: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz:.%"  # within brackets
_LONGEST_AUTHORITY: Final = 253 + 6  # a host name (RFC 1035 2.3.4) and a port
_LONGEST_NUMBER: Final = 18  # digits of a content-length: more bytes than anybody sends
_CONNECTION_FIELDS: Final = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
_REQUEST_PSEUDO: Final = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))
_ANSWER_PSEUDO: Final = frozenset((b":status",))
_NO_PSEUDO: Final = frozenset[bytes]()
_NAMES: Final[dict[bytes, str]] = {
    name.encode(): name
    for name in ("baggage", "forwarded", "traceparent", "x-forwarded-network", "user-agent", "via")
}


@dataclass(slots=True)
class RequestFields:
    """A request's fields; `authority` is None when the request had none (the caller answers 400)."""

    method: str
    authority: str | None
    headers: Fields
    content_length: int  # -1: not said


@dataclass(slots=True)
class AnswerFields:
    """An answer's fields."""

    status: int
    headers: Fields
    content_length: int  # -1: not said


def list_size(fields: Sequence[Field]) -> int:
    """The size of a header list as RFC 9113 6.5.2 counts it: names, values and 32 for each field."""
    return sum([len(name) + len(value) for name, value in fields]) + FIELD_OVERHEAD * len(fields)


def read_request(fields: Iterable[Field]) -> RequestFields:
    """Check and read a request.

    A method other than CONNECT, and a CONNECT without authority, are no errors here: they are answered.

    Raises:
        PeerBrokeProtocol: malformed in the sense of RFC 9113 8.1.1; the stream is to be reset.
    """
    pseudo, headers = _split(fields, _REQUEST_PSEUDO)
    method = pseudo.get(b":method")
    if not method:
        raise _malformed("a request without :method")
    authority = pseudo.get(b":authority")
    if authority is not None and not _is_authority(authority):
        raise _malformed("an :authority nobody can parse")
    if method == b"CONNECT":
        if b":scheme" in pseudo or b":path" in pseudo or b":protocol" in pseudo:
            raise _malformed("a CONNECT with :scheme, :path or :protocol")  # RFC 9113 8.5
    elif b":protocol" in pseudo or not pseudo.get(b":scheme") or not pseudo.get(b":path"):
        raise _malformed("a request without :scheme or :path, or with :protocol")  # RFC 9113 8.3.1
    return RequestFields(
        method.decode("latin-1"),
        None if authority is None else authority.decode("ascii"),
        headers,
        _content_length(headers),
    )


def read_answer(fields: Iterable[Field]) -> AnswerFields:
    """Check and read an answer, the informational ones included.

    Raises:
        PeerBrokeProtocol: malformed in the sense of RFC 9113 8.1.1; the stream is to be reset.
    """
    pseudo, headers = _split(fields, _ANSWER_PSEUDO)
    status = pseudo.get(b":status", b"")
    if len(status) != 3 or not status.isdigit():
        raise _malformed("an answer without a :status of three digits")
    return AnswerFields(int(status), headers, _content_length(headers))


def check_trailers(fields: Iterable[Field]) -> None:
    """Check trailers; their contents are of no use to a tunnel.

    Raises:
        PeerBrokeProtocol: malformed in the sense of RFC 9113 8.1.1; the stream is to be reset.
    """
    _split(fields, _NO_PSEUDO)


def _split(fields: Iterable[Field], allowed: frozenset[bytes]) -> tuple[dict[bytes, bytes], Fields]:
    pseudo: dict[bytes, bytes] = {}
    headers: Fields = {}
    for name, value in fields:
        text = value.decode("latin-1")
        if (not text.isprintable() or text[:1] == " " or text[-1:] == " ") and _BAD_VALUE.search(value):
            raise _malformed("a field value with forbidden characters")
        if name[:1] == b":":
            if headers or name in pseudo or name not in allowed:
                raise _malformed("a pseudo-header that is unknown, repeated or out of place")
            pseudo[name] = value
            continue
        known = _NAMES.get(name)
        if known is None:
            if _NAME.fullmatch(name) is None:
                raise _malformed("a field name with forbidden characters")
            if name in _CONNECTION_FIELDS or (name == b"te" and value.lower() != b"trailers"):
                raise _malformed("a connection-specific field")  # RFC 9113 8.2.2
            known = name.decode()
        lines = headers.get(known)
        if lines is None:
            headers[known] = [text]
        else:
            lines.append(text)
    return pseudo, headers


def _is_authority(value: bytes) -> bool:
    """Whether this is `host`, `host:port` or `[address]:port` (RFC 3986 3.2), and not absurdly long."""
    if not value or len(value) > _LONGEST_AUTHORITY:
        return False
    if value[:1] == b"[":
        host, bracket, rest = value[1:].partition(b"]")
        if not host or not bracket or host.translate(None, _LITERAL) or rest[:1] not in (b"", b":"):
            return False
        return not rest[1:].translate(None, _UNRESERVED)
    host, _, port = value.partition(b":")
    return not host.translate(None, _HOST) and not port.translate(None, _UNRESERVED)


def _content_length(headers: Fields) -> int:
    """What a content-length says (RFC 9110 8.6), -1 where there is none."""
    lines = headers.get("content-length")
    if lines is None:
        return -1
    length = lines[0]
    if any(line != length for line in lines) or not (length.isascii() and length.isdigit()):
        raise _malformed("a content-length that is no number")
    if len(length) > _LONGEST_NUMBER:
        raise _malformed("a content-length that is no number")
    return int(length)


def _malformed(what: str) -> PeerBrokeProtocol:
    return PeerBrokeProtocol(what, ErrorCode.PROTOCOL_ERROR)

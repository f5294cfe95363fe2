"""The header fields of a CONNECT request and of its answer, checked as RFC 9113 8.1–8.5 asks.

Apart from the frames (`wire.hbone`) because a malformed header list ends one stream, a malformed frame the
connection.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ztunnel_trio.errors import PeerBrokeProtocol

PROTOCOL_ERROR = 1  # RFC 9113 7

Field = tuple[bytes, bytes]
Fields = dict[str, list[str]]

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")  # RFC 9110 5.1, lower case as RFC 9113 8.2.1 asks
_BAD_VALUE = re.compile(rb"[\x00\r\n]|^[ \t]|[ \t]$")  # RFC 9113 8.2.1
_AUTHORITY = re.compile(r"(\[[0-9A-Za-z:.%]+\]|[A-Za-z0-9\-._~%!$&'()*+,;=]*)(:[A-Za-z0-9\-._~]*)?")
_CONNECTION_FIELDS = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
_REQUEST_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))
_ANSWER_PSEUDO = frozenset((b":status",))
_NO_PSEUDO: frozenset[bytes] = frozenset()
_NAMES: dict[bytes, str] = {
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


def list_size(fields: Sequence[Field]) -> int:
    """The size of a header list as RFC 9113 6.5.2 counts it: names, values and 32 for each field."""
    return sum([len(name) + len(value) for name, value in fields]) + 32 * len(fields)


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
    authority = None
    if b":authority" in pseudo:
        authority = pseudo[b":authority"].decode("latin-1")
        if not authority or _AUTHORITY.fullmatch(authority) is None:
            raise _malformed("an :authority nobody can parse")
    if method == b"CONNECT":
        if b":scheme" in pseudo or b":path" in pseudo or b":protocol" in pseudo:
            raise _malformed("a CONNECT with :scheme, :path or :protocol")  # RFC 9113 8.5
    elif b":protocol" in pseudo or not pseudo.get(b":scheme") or not pseudo.get(b":path"):
        raise _malformed("a request without :scheme or :path, or with :protocol")  # RFC 9113 8.3.1
    length = headers.get("content-length")
    if length is None:
        return RequestFields(method.decode("latin-1"), authority, headers, -1)
    if len(set(length)) > 1 or not (length[0].isascii() and length[0].isdigit()) or len(length[0]) > 18:
        raise _malformed("a content-length that is no number")
    return RequestFields(method.decode("latin-1"), authority, headers, int(length[0]))


def read_answer(fields: Iterable[Field]) -> AnswerFields:
    """Check and read an answer, the informational ones included.

    Raises:
        PeerBrokeProtocol: malformed in the sense of RFC 9113 8.1.1; the stream is to be reset.
    """
    pseudo, headers = _split(fields, _ANSWER_PSEUDO)
    status = pseudo.get(b":status", b"")
    if len(status) != 3 or not status.isdigit():
        raise _malformed("an answer without a :status of three digits")
    return AnswerFields(int(status), headers)


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
        if _BAD_VALUE.search(value) is not None:
            raise _malformed("a field value with forbidden characters")
        if name[:1] == b":":
            if headers or name in pseudo or name not in allowed:
                raise _malformed("a pseudo-header that is unknown, repeated or out of place")
            pseudo[name] = value
            continue
        text = _NAMES.get(name)
        if text is None:
            if _NAME.fullmatch(name) is None:
                raise _malformed("a field name with forbidden characters")
            if name in _CONNECTION_FIELDS or (name == b"te" and value.lower() != b"trailers"):
                raise _malformed("a connection-specific field")  # RFC 9113 8.2.2
            text = name.decode()
        headers.setdefault(text, []).append(value.decode("latin-1"))
    return pseudo, headers


def _malformed(what: str) -> PeerBrokeProtocol:
    return PeerBrokeProtocol(what, PROTOCOL_ERROR)

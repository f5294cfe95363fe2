"""DNS messages: questions in, answers out, over dnspython where a message is not of the common form.

Nearly every message a pod sends has one question, and nothing else or one OPT record (RFC 1035, RFC 6891).
That form is read here straight from the datagram; whatever else a message carries, dnspython has to find
well-formed. A name is a tuple of lower-case labels without the root; a label holding anything a hostname
cannot hold is written with escapes, so that it never equals a hostname.

An answer from the mesh is encoded once and kept: `EncodedAnswer.message` only puts the id before it and
shuffles its addresses. A message that is passed on is never encoded again: `with_id` changes its first two
bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.address import IPAddress, decode_ip

if TYPE_CHECKING:
    from random import Random

A: Final = int(dns.rdatatype.A)
AAAA: Final = int(dns.rdatatype.AAAA)
CNAME: Final = int(dns.rdatatype.CNAME)
OPT: Final = int(dns.rdatatype.OPT)
IXFR: Final = int(dns.rdatatype.IXFR)
AXFR: Final = int(dns.rdatatype.AXFR)

TTL: Final = 30  # seconds; ztunnel src/dns/server.rs DEFAULT_TTL_SECONDS
PLAIN_UDP_LIMIT: Final = 512  # RFC 1035 4.2.1
UDP_LIMIT: Final = 65507  # what an IPv4 datagram can carry
TCP_LIMIT: Final = 65535  # RFC 1035 4.2.2
RECORD_LIMIT: Final = 16  # records beside the question; a query has an OPT, a TSIG, an SOA for IXFR, no more

QR: Final = 0x8000
OPCODE: Final = 0x7800
AUTHORITATIVE: Final = 0x0400
TRUNCATED: Final = 0x0200
RECURSION_DESIRED: Final = 0x0100
RECURSION_AVAILABLE: Final = 0x0080
CHECKING_DISABLED: Final = 0x0010
RCODE: Final = 0x000F

_HEADER: Final = Struct("!HHHHHH")
_FLAGS: Final = Struct("!HHHHH")  # all but the id
_TYPE_CLASS: Final = Struct("!HH")
_RECORD: Final = Struct("!HHIH")
_OPT: Final = Struct("!BHHBBHH")
_DO: Final = 0x8000
_DOT: Final = ord(".")
_HOST_BYTES: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_*.")
_LONGEST_NAME: Final = 255  # RFC 1035 3.1

Name = tuple[str, ...]
"""Lower-case labels, leftmost first, without the root."""


class Rcode(Enum):
    """The response codes we give ourselves (RFC 1035 4.1.1)."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2


@dataclass(frozen=True, slots=True)
class Edns:
    """What the OPT record of a query asks for that an answer has to repeat (RFC 6891 6.1.3)."""

    payload: int
    version: int
    dnssec_ok: bool


@dataclass(frozen=True, slots=True)
class Query:
    """One standard query: `question` is its name, type and class exactly as asked, `host` the name as text.

    The text is lower case and without the dot at its end, so that it is empty for the root.
    """

    id: int
    flags: int
    question: bytes
    host: str
    type: int
    edns: Edns | None

    @property
    def name(self) -> Name:
        """The labels of the name."""
        return tuple(self.host.split(".")) if self.host else ()

    @property
    def udp_limit(self) -> int:
        """The largest answer its asker takes in a datagram."""
        return (
            PLAIN_UDP_LIMIT if self.edns is None else min(max(self.edns.payload, PLAIN_UDP_LIMIT), UDP_LIMIT)
        )


@dataclass(frozen=True, slots=True)
class OtherOperation:
    """A message of another opcode (UPDATE, NOTIFY, …): not looked into, only passed on."""

    id: int
    flags: int


@dataclass(frozen=True, slots=True)
class Unanswerable:
    """A message that cannot be a question; `reply` says so."""

    reply: bytes


Request = Query | OtherOperation | Unanswerable


class _Question(NamedTuple):
    host: str
    type: int
    end: int


def _read_question(message: bytes) -> _Question | None:
    """The question behind the header; None if it is cut short, compressed, or its name over 255 octets.

    A name may have 127 labels and costs little more than one of five: only the way from length to length is
    walked here.
    """
    name = message[12 : 12 + _LONGEST_NAME]
    dotted = bytearray(name)  # with a dot in place of each length
    at = 0
    try:
        while length := name[at]:
            if length > 63:
                return None
            dotted[at] = _DOT
            at += 1 + length
    except IndexError:
        return None
    end = 12 + at + 5
    if len(message) < end:
        return None
    raw = bytes(dotted[1:at]).lower()
    if _HOST_BYTES.issuperset(raw) and b"." not in name[:at]:
        host = raw.decode("ascii")
    else:  # a dot may be a length of 46, too
        host = _escaped(name, at)
    return _Question(host, int.from_bytes(message[end - 4 : end - 2], "big"), end)


def _escaped(name: bytes, end: int) -> str:
    """A name as text, with master-file escapes where a hostname could not have a byte."""
    labels: list[str] = []
    at = 0
    while at < end:
        raw = name[at + 1 : at + 1 + name[at]].lower()
        labels.append("".join([chr(b) if b in _HOST_BYTES and b != _DOT else f"\\{b:03}" for b in raw]))
        at += 1 + name[at]
    return ".".join(labels)


def read_request(message: bytes) -> Request | None:
    """What a client asks, or None for what gets no answer at all: under 12 bytes, or itself a response."""
    if len(message) < 12:
        return None
    message_id, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(message)
    if flags & QR:
        return None
    if flags & OPCODE:
        return OtherOperation(message_id, flags)
    if questions != 1:
        return Unanswerable(_error(message_id, flags, b"", Rcode.SERVFAIL))
    question = _read_question(message)
    if question is None:
        return Unanswerable(_error(message_id, flags, b"", Rcode.FORMERR))
    edns = None
    if answers or authorities or additionals or len(message) != question.end:
        try:
            edns = _read_rest(message, question.end, answers + authorities, additionals)
        except PeerBrokeProtocol:
            return Unanswerable(_error(message_id, flags, b"", Rcode.FORMERR))
    return Query(message_id, flags, message[12 : question.end], question.host, question.type, edns)


def _read_rest(message: bytes, start: int, others: int, additionals: int) -> Edns | None:
    """Check what follows the question, and find the OPT record in it.

    Raises:
        PeerBrokeProtocol: too many records, or not well-formed.
    """
    if not others and additionals == 1 and len(message) >= start + _OPT.size:
        root, kind, payload, _, version, flags, length = _OPT.unpack_from(message, start)
        if root == 0 and kind == OPT and len(message) == start + _OPT.size + length:
            return Edns(payload, version, bool(flags & _DO))
    if others + additionals > RECORD_LIMIT:
        raise PeerBrokeProtocol("too many records for a query")
    try:
        parsed = dns.message.from_wire(message, keyring=False)
    except (dns.exception.DNSException, ValueError) as error:
        raise PeerBrokeProtocol(f"malformed message: {error}") from error
    if parsed.edns < 0:
        return None
    return Edns(parsed.payload, parsed.edns, bool(parsed.ednsflags & _DO))


def _error(message_id: int, flags: int, question: bytes, rcode: Rcode) -> bytes:
    kept = flags & (OPCODE | RECURSION_DESIRED | CHECKING_DISABLED)
    return _HEADER.pack(message_id, QR | kept | rcode.value, bool(question), 0, 0, 0) + question


def error_reply(request: Query | OtherOperation, rcode: Rcode) -> bytes:
    """An answer that holds nothing but its code: the question as asked, no records, no OPT."""
    question = request.question if isinstance(request, Query) else b""
    return _error(request.id, request.flags, question, rcode)


@dataclass(frozen=True, slots=True)
class EncodedAnswer:
    """An authoritative answer without its id, ready for `message`; kept between equal questions.

    `before` reaches up to and including the first owner name of the addresses, `bodies` are the address
    records without their owner, `owner` is the pointer that stands before each but the first, `after` is the
    OPT record.
    """

    before: bytes
    bodies: tuple[bytes, ...]
    fitting: int
    owner: bytes
    after: bytes

    def message(self, message_id: int, rng: "Random") -> bytes:
        """The whole message under that id, its addresses in an order of their own."""
        bodies: Sequence[bytes] = self.bodies
        if len(bodies) > 1:
            bodies = rng.sample(bodies, self.fitting)
        elif not self.fitting:
            bodies = ()
        return b"".join((message_id.to_bytes(2, "big"), self.before, self.owner.join(bodies), self.after))


def encode_answer(
    query: Query, addresses: Sequence[IPAddress], *, alias_of: Name | None = None, limit: int
) -> EncodedAnswer:
    """An authoritative answer of at most `limit` bytes; what does not fit is left out and TC set, RFC 2181 9.

    Owner names are lower case, as the mesh has them. With `alias_of`, the leftmost labels of the name asked
    for, the name is a CNAME of that, and the addresses are that one's.
    """
    asked = query.question[:-4]
    own = b"\xc0\x0c" if asked == asked.lower() else asked.lower()  # 12: the question's name
    position = 12 + len(query.question)
    alias = b""
    if alias_of is not None:
        target = _leading_labels(asked.lower(), len(alias_of))
        alias = own + _RECORD.pack(CNAME, 1, TTL, len(target)) + target
        first = pointer = (0xC000 | position + len(alias) - len(target)).to_bytes(2, "big")
    elif own == b"\xc0\x0c":
        first = pointer = own
    else:
        first, pointer = own, (0xC000 | position).to_bytes(2, "big")
    bodies = tuple(
        _RECORD.pack(A if ip.version == 4 else AAAA, 1, TTL, len(ip.packed)) + ip.packed for ip in addresses
    )
    after = b"" if query.edns is None else _opt(query.edns)
    room = limit - position - len(after)
    if room < len(alias):
        alias, fitting = b"", 0
    else:
        fitting = _fitting(bodies, room - len(alias), len(first), len(pointer))
    complete = fitting == len(bodies) and (alias_of is None or bool(alias))
    flags = QR | AUTHORITATIVE | RECURSION_AVAILABLE | query.flags & (RECURSION_DESIRED | CHECKING_DISABLED)
    counts = _FLAGS.pack(flags | (0 if complete else TRUNCATED), 1, bool(alias) + fitting, 0, bool(after))
    before = counts + query.question + alias + (first if fitting else b"")
    return EncodedAnswer(before, bodies, fitting, pointer, after)


def _fitting(bodies: Sequence[bytes], room: int, first: int, pointer: int) -> int:
    """How many records of one size fit: the first one's owner has its own length."""
    if not bodies or room < first + len(bodies[0]):
        return 0
    return min(len(bodies), 1 + (room - first - len(bodies[0])) // (pointer + len(bodies[0])))


def _leading_labels(wire: bytes, count: int) -> bytes:
    """The first `count` labels of an encoded name as a name of their own."""
    end = 0
    for _ in range(count):
        end += 1 + wire[end]
    return wire[:end] + b"\0"


def _opt(edns: Edns) -> bytes:
    payload = max(edns.payload, PLAIN_UDP_LIMIT)
    return _OPT.pack(0, OPT, payload, 0, edns.version, _DO if edns.dnssec_ok else 0, 0)


@lru_cache(maxsize=256)
def type_text(record_type: int) -> str:
    """A record type as people write it; `UNKNOWN` for one without a name, so that labels stay few."""
    text = dns.rdatatype.to_text(dns.rdatatype.RdataType(record_type))
    return "UNKNOWN" if text.startswith("TYPE") else text


def name_text(name: Name) -> str:
    """A name with its trailing dot."""
    return ".".join(name) + "."


# passing on


def message_id(message: bytes) -> int:
    """The id of a message of 12 bytes or more."""
    return int.from_bytes(message[:2], "big")


def with_id(message: bytes, new: int) -> bytes:
    """The same message under another id."""
    return new.to_bytes(2, "big") + message[2:]


def is_truncated(message: bytes) -> bool:
    return bool(message[2] & TRUNCATED >> 8)


def rcode_of(message: bytes) -> int:
    """The code in the header of a message of 12 bytes or more, without EDNS' extension."""
    return message[3] & RCODE


def answer_count(message: bytes) -> int:
    """How many answer records the header of a message of 12 bytes or more promises."""
    return int.from_bytes(message[6:8], "big")


def is_answer(reply: bytes, query: bytes) -> bool:
    """Whether `reply` answers `query` as sent: id, opcode and question are the same (RFC 5452 9.1).

    A server that could not read the question may leave it out of its error.
    """
    if len(reply) < 12 or reply[:2] != query[:2] or not reply[2] & QR >> 8:
        return False
    if (reply[2] ^ query[2]) & OPCODE >> 8:
        return False
    if reply[4:6] == b"\0\0" and (query[4:6] == b"\0\0" or rcode_of(reply)):
        return True
    if reply[4:6] != query[4:6]:
        return False
    asked, echoed = _read_question(query), _read_question(reply)
    if asked is None or echoed is None:
        return query[4:6] != b"\0\1"  # an opcode with a first section of its own kind
    return (
        asked.host == echoed.host and query[asked.end - 4 : asked.end] == reply[echoed.end - 4 : echoed.end]
    )


def cut_to(reply: bytes, limit: int) -> bytes:
    """A message as it is, or, over `limit` bytes, its header and question with TC set: ask again over TCP."""
    if len(reply) <= limit:
        return reply
    question = _read_question(reply) if reply[4:6] == b"\0\1" else None
    end = 12 if question is None else question.end
    flags = bytes((reply[2] | TRUNCATED >> 8, reply[3]))
    return b"".join((reply[:2], flags, b"\0\0" if question is None else b"\0\1", bytes(6), reply[12:end]))


# asking for ourselves


@dataclass(frozen=True, slots=True)
class FoundAddresses:
    """Addresses of a name, good for `ttl` seconds."""

    addresses: tuple[IPAddress, ...]
    ttl: int


@dataclass(frozen=True, slots=True)
class NotFound:
    """No address, good for `ttl` seconds. `has_records`: there was an answer, but no address in it."""

    text: str
    ttl: int
    has_records: bool = False


MAX_TTL: Final = 86400  # hickory-resolver: one day


def encode_query(new_id: int, name: Name, record_type: int, *, edns: bool) -> bytes:
    """A recursive query for an absolute name.

    Raises:
        PeerBrokeProtocol: no name of DNS: an empty or long label, or over 255 octets.
    """
    try:
        asked = dns.name.from_text(name_text(name))
    except (dns.exception.DNSException, ValueError) as error:
        raise PeerBrokeProtocol(f"not a domain name: {name_text(name)}") from error
    kind = dns.rdatatype.RdataType(record_type)
    return dns.message.make_query(asked, kind, use_edns=0 if edns else None, id=new_id).to_wire()


def parse_name(text: str) -> Name:
    """A hostname as people write it, with or without the trailing dot, as lower-case labels."""
    stripped = text.lower().removesuffix(".")
    return tuple(stripped.split(".")) if stripped else ()


def read_addresses(reply: bytes) -> FoundAddresses | NotFound:
    """The addresses a reply to our own A or AAAA query holds, following its CNAMEs.

    Raises:
        PeerBrokeProtocol: the reply is malformed.
    """
    try:
        message = dns.message.from_wire(reply)
        if not isinstance(message, dns.message.QueryMessage):
            raise PeerBrokeProtocol("not an answer to a query")
        chain = message.resolve_chaining()
    except (dns.exception.DNSException, ValueError) as error:
        raise PeerBrokeProtocol(f"malformed answer: {error}") from error
    rcode = message.rcode()
    if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return NotFound(dns.rcode.to_text(rcode), 0)
    addresses = tuple(
        decode_ip(record.to_digestable())
        for record in chain.answer or ()
        if isinstance(record, dns.rdtypes.IN.A.A | dns.rdtypes.IN.AAAA.AAAA)
    )
    if addresses:
        return FoundAddresses(addresses, min(chain.minimum_ttl, MAX_TTL))
    has_soa = any(rrset.rdtype == dns.rdatatype.SOA for rrset in message.authority)
    ttl = min(chain.minimum_ttl, MAX_TTL) if has_soa else 0  # without SOA nothing is kept
    return NotFound("no records found", ttl, has_records=bool(message.answer) and rcode == dns.rcode.NOERROR)

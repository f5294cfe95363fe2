import random
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.tsigkeyring
import dns.update
import pytest

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.dns import (
    AAAA,
    A,
    Edns,
    FoundAddresses,
    NotFound,
    OtherOperation,
    Query,
    Rcode,
    Unanswerable,
    answer_count,
    cut_to,
    encode_answer,
    encode_query,
    error_reply,
    is_answer,
    is_truncated,
    message_id,
    name_text,
    parse_name,
    rcode_of,
    read_addresses,
    read_request,
    type_text,
    with_id,
)


def ask(name: str, kind: str = "A", *, payload: int | None = None) -> bytes:
    return dns.message.make_query(
        name, kind, use_edns=None if payload is None else 0, payload=payload
    ).to_wire()


def query(message: bytes) -> Query:
    request = read_request(message)
    assert isinstance(request, Query)
    return request


def parse(message: bytes) -> dns.message.Message:
    return dns.message.from_wire(message)


def answer(
    name: str, *addresses: str, limit: int = 512, alias_of: str | None = None, **how: int
) -> dns.message.Message:
    asked = query(ask(name, "AAAA" if ":" in "".join(addresses) else "A", **how))
    ips = [ip_address(text) for text in addresses]
    encoded = encode_answer(
        asked, ips, alias_of=None if alias_of is None else parse_name(alias_of), limit=limit
    )
    message = encoded.message(asked.id, random.Random(1))
    assert len(message) <= limit
    return parse(message)


def texts(message: dns.message.Message) -> list[str]:
    return sorted(
        f"{r.name} {r.ttl} {dns.rdatatype.to_text(r.rdtype)} {d}" for r in message.answer for d in r
    )


def unanswerable(message: bytes) -> dns.message.Message:
    request = read_request(message)
    assert isinstance(request, Unanswerable)
    return parse(request.reply)


def test_a_question_is_read_in_lower_case_and_kept_as_asked() -> None:
    asked = query(ask("WWW.Example.COM", "AAAA"))

    assert (asked.name, asked.type, asked.edns) == (("www", "example", "com"), AAAA, None)
    assert asked.question == b"\3WWW\7Example\3COM\0\0\x1c\0\1"


def test_the_root_has_no_labels() -> None:
    assert query(ask(".", "NS")).name == ()


def test_an_opt_record_is_read() -> None:
    wire = dns.message.make_query("a.b", "A", use_edns=0, payload=1232, want_dnssec=True).to_wire()

    assert query(wire).edns == Edns(1232, 0, dnssec_ok=True)


def test_unknown_edns_options_do_not_matter() -> None:
    option = dns.edns.GenericOption(dns.edns.OptionType.make(65001), b"whatever")
    wire = dns.message.make_query("a.b", "A", use_edns=0, payload=1232, options=[option]).to_wire()

    assert query(wire).edns == Edns(1232, 0, dnssec_ok=False)


def test_records_beside_the_opt_are_read_with_dnspython() -> None:
    message = dns.message.make_query("a.b", "IXFR", use_edns=0, payload=4096)
    message.authority.append(dns.rrset.from_text("a.b.", 0, "IN", "SOA", "ns.a.b. x.a.b. 1 2 3 4 5"))

    assert query(message.to_wire()).edns == Edns(4096, 0, dnssec_ok=False)


def test_a_signed_query_is_read_without_its_key() -> None:
    message = dns.message.make_query("a.b", "A")
    message.use_tsig(dns.tsigkeyring.from_text({"key.": "c2VjcmV0"}))

    assert query(message.to_wire()).edns is None


def test_a_label_no_hostname_has_cannot_pass_for_one() -> None:
    dotted = dns.message.make_query(dns.name.Name([b"a.b", b"svc", b""]), "A").to_wire()

    assert query(dotted).name == ("a\\046b", "svc")


def test_a_name_of_255_octets_is_read_and_one_more_is_not() -> None:
    longest = b"\x3f" + b"a" * 63
    end = b"\0\0\1\0\1"
    header = b"\0\1\1\0\0\1\0\0\0\0\0\0"

    assert len(query(header + longest * 3 + b"\x3d" + b"a" * 61 + end).question) == 255 + 4
    assert unanswerable(header + longest * 3 + b"\x3e" + b"a" * 62 + end).rcode() == dns.rcode.FORMERR


@pytest.mark.parametrize(
    "message", [b"", b"\0" * 11, b"\0\1\x80\0\0\1" + b"\0" * 6, b"\0\1\xa8\0" + b"\0" * 8]
)
def test_what_is_too_short_or_a_response_gets_silence(message: bytes) -> None:
    assert read_request(message) is None


HEADER = b"\0\7\1\x10\0\1\0\0\0\0\0\0"


@pytest.mark.parametrize(
    "message",
    [
        HEADER,
        HEADER + b"\3ab",
        HEADER + b"\1a\0\0\1",
        HEADER + b"\xc0\x0c\0\1\0\1",  # a name that points at itself
        HEADER + b"\1a\xc0\x0c\0\1\0\1",
        HEADER + b"\x80\0\0\1\0\1",
        HEADER + b"\1a\0\0\1\0\1" + b"junk",
        HEADER[:10] + b"\0\1\1a\0\0\1\0\1",  # an additional record that is not there
        HEADER[:10] + b"\0\1\1a\0\0\1\0\1\0\0\x29\2\0\0\0\0\0\0\4\0\0",  # an OPT cut short
        HEADER[:10]
        + b"\0\1\1a\0\0\1\0\1\xc0\x13\0\1\0\1\0\0\0\0\0\0",  # a record's name that points at itself
        HEADER[:10] + b"\xff\xff\1a\0\0\1\0\1" + b"\0\0\1\0\1\0\0\0\0\0\0" * 100,
    ],
)
def test_what_cannot_be_read_is_a_format_error_without_question(message: bytes) -> None:
    reply = unanswerable(message)

    assert (reply.id, reply.rcode(), reply.question) == (7, dns.rcode.FORMERR, [])
    assert reply.flags & ~0xF == dns.flags.QR | dns.flags.RD | dns.flags.CD


@pytest.mark.parametrize("count", [0, 2, 5000, 65535])
def test_any_number_of_questions_but_one_is_a_failure_no_longer_than_a_header(count: int) -> None:
    message = HEADER[:4] + count.to_bytes(2, "big") + HEADER[6:] + b"\1a\0\0\1\0\1" * min(count, 5000)
    request = read_request(message)

    assert isinstance(request, Unanswerable)
    assert len(request.reply) == 12
    assert rcode_of(request.reply) == Rcode.SERVFAIL.value


def test_other_operations_are_not_looked_into() -> None:
    update = dns.update.UpdateMessage("example.org")
    update.id = 9

    assert read_request(update.to_wire()) == OtherOperation(9, int(update.flags))


def test_an_error_echoes_the_question_and_what_the_client_chose() -> None:
    asked = query(ask("Www.example.com", payload=1232))

    reply = parse(error_reply(replace(asked, flags=0x0110), Rcode.SERVFAIL))

    assert reply.flags & ~0xF == dns.flags.QR | dns.flags.RD | dns.flags.CD
    assert reply.question[0].name.to_text() == "Www.example.com."
    assert (reply.rcode(), reply.edns) == (dns.rcode.SERVFAIL, -1)
    assert parse(error_reply(OtherOperation(9, 0x2800), Rcode.SERVFAIL)).opcode() == dns.opcode.UPDATE


def test_an_answer_is_authoritative_and_has_nothing_but_answers() -> None:
    reply = answer("server.default", "10.0.0.1")

    assert reply.flags == dns.flags.QR | dns.flags.AA | dns.flags.RA | dns.flags.RD
    assert texts(reply) == ["server.default. 30 A 10.0.0.1"]
    assert (reply.authority, reply.additional, reply.edns) == ([], [], -1)


def test_an_empty_answer_is_authoritative_too() -> None:
    reply = answer("server.default")

    assert reply.flags == dns.flags.QR | dns.flags.AA | dns.flags.RA | dns.flags.RD
    assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, [])


@pytest.mark.parametrize(
    "addresses", [["10.0.0.1"], ["10.0.0.1", "10.0.0.2", "10.0.0.3"], ["fd00::1", "fd00::2"]]
)
def test_owners_are_lower_case_and_the_question_is_as_asked(addresses: list[str]) -> None:
    reply = answer("SERVER.Default", *addresses)

    kind = "AAAA" if ":" in addresses[0] else "A"
    assert texts(reply) == [f"server.default. 30 {kind} {address}" for address in addresses]
    assert {r.name.to_text() for r in reply.answer} == {"server.default."}
    assert reply.question[0].name.to_text() == "SERVER.Default."


@pytest.mark.parametrize(
    "asked", ["www.google.com.ns1.svc.cluster.local", "WWW.google.com.ns1.svc.CLUSTER.local"]
)
def test_a_name_with_a_search_domain_is_an_alias_of_the_one_without(asked: str) -> None:
    reply = answer(asked, "1.1.1.1", "1.1.1.2", alias_of="www.google.com")

    assert texts(reply) == [
        "www.google.com. 30 A 1.1.1.1",
        "www.google.com. 30 A 1.1.1.2",
        "www.google.com.ns1.svc.cluster.local. 30 CNAME www.google.com.",
    ]
    assert [r.rdtype for r in reply.answer] == [dns.rdatatype.CNAME, dns.rdatatype.A]


@pytest.mark.parametrize(("payload", "echoed"), [(0, 512), (512, 512), (1232, 1232), (65535, 65535)])
def test_an_opt_record_is_answered_with_one(payload: int, echoed: int) -> None:
    message = dns.message.make_query("a", "A", use_edns=0, payload=payload, want_dnssec=True)
    asked = query(message.to_wire())

    reply = parse(encode_answer(asked, [], limit=asked.udp_limit).message(asked.id, random.Random(1)))

    assert (reply.edns, reply.payload, reply.ednsflags) == (0, echoed, dns.flags.DO)


@pytest.mark.parametrize(("payload", "limit"), [(None, 512), (0, 512), (1232, 1232), (65535, 65507)])
def test_a_datagram_holds_what_the_client_said_and_512_bytes_if_it_said_nothing(
    payload: int | None, limit: int
) -> None:
    assert query(ask("a", payload=payload)).udp_limit == limit


MANY = [f"240.0.0.{n}" for n in range(256)]


def test_what_does_not_fit_is_left_out_and_marked() -> None:
    reply = answer("large.com", *MANY, limit=1232, payload=1232)

    assert reply.flags & dns.flags.TC
    assert len(texts(reply)) == (1232 - 12 - 15 - 11) // 16


def test_what_fits_is_whole() -> None:
    reply = answer("large.com", *MANY, limit=65535)

    assert not reply.flags & dns.flags.TC
    assert len(texts(reply)) == 256


def test_at_every_limit_an_answer_is_well_formed() -> None:
    for limit in range(80, 400):
        for asked in ("a.b.svc.cluster.local", "A.b.svc.cluster.local"):
            reply = answer(asked, *MANY[:20], limit=limit, alias_of="a.b", payload=512)
            assert bool(reply.flags & dns.flags.TC) == (len(texts(reply)) < 21)


def test_addresses_come_in_any_order() -> None:
    asked = query(ask("large.com"))
    encoded = encode_answer(asked, [ip_address(text) for text in MANY[:4]], limit=512)
    rng = random.Random(4)

    orders = {encoded.message(asked.id, rng) for _ in range(500)}

    assert len(orders) == 24


def test_types_are_named_and_those_without_a_name_share_one() -> None:
    assert [type_text(n) for n in (1, 28, 33, 65280)] == ["A", "AAAA", "SRV", "UNKNOWN"]


def test_names_are_written_with_their_last_dot() -> None:
    assert name_text(("a", "b")) == "a.b."
    assert name_text(()) == "."
    assert parse_name("A.b.") == ("a", "b")
    assert parse_name(".") == ()


# passing on


def test_the_id_is_changed_and_nothing_else() -> None:
    message = ask("a.b", payload=1232)

    assert message_id(with_id(message, 4711)) == 4711
    assert with_id(message, 4711)[2:] == message[2:]


Spoil = Callable[[bytes], bytes]


def reply_to(message: bytes, rcode: int = 0, *addresses: str) -> bytes:
    reply = dns.message.make_response(parse(message), recursion_available=True)
    reply.set_rcode(dns.rcode.Rcode(rcode))
    if addresses:
        reply.answer.append(dns.rrset.from_text(reply.question[0].name, 60, "IN", "A", *addresses))
    return reply.to_wire()


def test_an_answer_echoes_id_and_question_in_any_case() -> None:
    asked = ask("www.example.com")

    assert is_answer(reply_to(asked), asked)
    assert is_answer(reply_to(asked).replace(b"www", b"WwW"), asked)


def test_an_error_may_leave_out_the_question() -> None:
    asked = ask("www.example.com")

    assert is_answer(asked[:2] + b"\x81\x05" + bytes(8), asked)
    assert not is_answer(asked[:2] + b"\x81\x00" + bytes(8), asked)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda reply: reply[:11],
        lambda reply: with_id(reply, message_id(reply) ^ 1),
        lambda reply: reply[:2] + b"\1" + reply[3:],
        lambda reply: reply[:2] + b"\xa9" + reply[3:],
        lambda reply: reply.replace(b"www", b"wwx"),
        lambda reply: reply[:-1] + b"\3",
        lambda reply: reply[:-3] + b"\2" + reply[-2:],
        lambda reply: reply[:4] + b"\0\2" + reply[6:],
        lambda reply: reply[:14],
    ],
    ids=["short", "id", "query", "opcode", "name", "class", "type", "count", "cut"],
)
def test_what_answers_something_else_is_no_answer(spoil: Spoil) -> None:
    asked = ask("www.example.com")

    assert not is_answer(spoil(reply_to(asked)), asked)


def test_other_operations_are_answered_by_what_echoes_their_first_section() -> None:
    update = dns.update.UpdateMessage("example.org")
    asked = update.to_wire()

    assert is_answer(dns.message.make_response(update).to_wire(), asked)
    assert is_answer(asked[:2] + b"\xa8\0" + bytes(8), asked[:4] + bytes(8))


def test_a_message_passed_on_is_cut_to_its_question_if_it_must() -> None:
    reply = reply_to(ask("www.example.com"), 0, "1.1.1.1", "1.1.1.2")

    assert cut_to(reply, len(reply)) is reply
    cut = cut_to(reply, len(reply) - 1)
    assert is_truncated(cut)
    assert not is_truncated(reply)
    assert (parse(cut).question, parse(cut).answer) == (parse(reply).question, [])
    assert parse(cut_to(reply[:2] + b"\xa8\0" + bytes(600), 512)).flags & dns.flags.TC


def test_codes_and_counts_are_read_from_the_header() -> None:
    assert rcode_of(reply_to(ask("a"), 3)) == 3
    assert answer_count(reply_to(ask("a"), 0, "1.1.1.1", "1.1.1.2")) == 2


# asking for ourselves


def test_our_own_query_is_recursive_and_absolute() -> None:
    message = parse(encode_query(7, ("www", "example", "com"), A, edns=True))

    assert (message.id, message.flags, message.edns) == (7, dns.flags.RD, 0)
    assert message.question[0].to_text() == "www.example.com. IN A"


@pytest.mark.parametrize("name", ["a..b", "x" * 64, "a." * 128 + "a"])
def test_what_is_no_name_of_dns_is_not_asked(name: str) -> None:
    with pytest.raises(PeerBrokeProtocol):
        encode_query(7, parse_name(name), A, edns=False)


def upstream(kind: str, *records: str, rcode: int = 0, authority: str | None = None) -> bytes:
    reply = dns.message.make_response(dns.message.make_query("www.example.com", kind))
    reply.set_rcode(dns.rcode.Rcode(rcode))
    for record in records:
        owner, ttl, record_kind, data = record.split(" ", 3)
        reply.answer.append(dns.rrset.from_text(owner, int(ttl), "IN", record_kind, data))
    if authority:
        owner, ttl, record_kind, data = authority.split(" ", 3)
        reply.authority.append(dns.rrset.from_text(owner, int(ttl), "IN", record_kind, data))
    return reply.to_wire()


def test_addresses_are_found_behind_aliases_and_live_as_long_as_the_shortest() -> None:
    reply = upstream("A", "www.example.com. 300 CNAME x.example.net.", "x.example.net. 60 A 1.1.1.1")

    assert read_addresses(reply) == FoundAddresses((ip_address("1.1.1.1"),), 60)


def test_an_ipv6_address_is_read() -> None:
    assert read_addresses(upstream("AAAA", "www.example.com. 99999999 AAAA fd00::1")) == FoundAddresses(
        (ip_address("fd00::1"),), 86400
    )


def test_a_failure_lives_as_long_as_its_soa_says() -> None:
    soa = "example.com. 50 SOA ns.example.com. x.example.com. 1 2 3 4 5"

    assert read_addresses(upstream("A", rcode=3, authority=soa)) == NotFound("no records found", 5)
    assert read_addresses(upstream("A", rcode=3)) == NotFound("no records found", 0)
    assert read_addresses(upstream("A", rcode=2, authority=soa)) == NotFound("SERVFAIL", 0)


def test_records_that_are_no_addresses_are_told_from_none() -> None:
    found = read_addresses(upstream("A", "www.example.com. 60 CNAME x.example.net."))

    assert found == NotFound("no records found", 0, has_records=True)


def test_a_malformed_answer_is_its_senders_fault() -> None:
    with pytest.raises(PeerBrokeProtocol):
        read_addresses(upstream("A", "www.example.com. 60 A 1.1.1.1")[:-1])
    with pytest.raises(PeerBrokeProtocol):
        read_addresses(ask("a.b"))
    with pytest.raises(PeerBrokeProtocol):
        read_addresses(dns.message.make_response(dns.update.UpdateMessage("a.b")).to_wire())
    loop = upstream("A", *["www.example.com. 60 CNAME www.example.com."])
    with pytest.raises(PeerBrokeProtocol):
        read_addresses(loop)

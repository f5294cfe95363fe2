"""What a stranger may send to port 53, and what must come of it."""

import contextlib
import random
from ipaddress import IPv4Address, IPv6Address

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rdatatype
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.dns_mesh import CLIENT, reference_mesh
from ztunnel_trio.decide.answer import Addresses, NameSettings, answer
from ztunnel_trio.dns.resolv_conf import parse_hosts, parse_resolv_conf
from ztunnel_trio.errors import ConfigError, PeerBrokeProtocol
from ztunnel_trio.wire.dns import (
    Query,
    Unanswerable,
    cut_to,
    encode_answer,
    is_answer,
    read_addresses,
    read_request,
    with_id,
)

labels = st.lists(st.binary(min_size=1, max_size=20), max_size=8).map(tuple)


@st.composite
def queries(draw: st.DrawFn) -> bytes:
    name = dns.name.Name((*draw(labels), b""))
    message = dns.message.make_query(
        name, dns.rdatatype.RdataType(draw(st.integers(1, 65535).filter(is_question)))
    )
    if draw(st.booleans()):
        options: list[dns.edns.Option] = [
            dns.edns.GenericOption(dns.edns.OptionType.make(65001), draw(st.binary(max_size=30)))
        ]
        message.use_edns(0, draw(st.sampled_from([0, 0x8000])), draw(st.integers(0, 65535)), options=options)
    return message.to_wire()


def is_question(record_type: int) -> bool:
    return not dns.rdatatype.is_metatype(dns.rdatatype.RdataType(record_type))


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    message = bytearray(draw(queries()))
    for _ in range(draw(st.integers(0, 5))):
        message[draw(st.integers(0, len(message) - 1))] = draw(st.integers(0, 255))
    return bytes(message[: draw(st.integers(0, len(message)))]) + draw(st.binary(max_size=40))


@given(st.binary(max_size=600) | mangled())
@settings(max_examples=400)
def test_any_bytes_are_a_request_or_silence_and_an_error_is_never_longer(message: bytes) -> None:
    request = read_request(message)

    if isinstance(request, Unanswerable):
        assert len(request.reply) <= len(message)
        dns.message.from_wire(request.reply)


@given(queries())
def test_a_query_is_read_as_dnspython_reads_it(message: bytes) -> None:
    request, parsed = read_request(message), dns.message.from_wire(message)

    assert isinstance(request, Query)
    assert (request.id, request.flags) == (parsed.id, int(parsed.flags))
    assert request.type == parsed.question[0].rdtype
    assert len(request.name) == len(parsed.question[0].name) - 1
    assert (request.edns is None) == (parsed.edns < 0)
    if request.edns is not None:
        assert (request.edns.payload, request.edns.version) == (parsed.payload, parsed.edns)
        assert request.edns.dnssec_ok == bool(parsed.ednsflags & 0x8000)


# RFC 1035 4.2.1: "Messages carried by UDP are restricted to 512 bytes".
@given(
    queries(),
    st.lists(st.ip_addresses(v=4), max_size=60) | st.lists(st.ip_addresses(v=6), max_size=60),
    st.booleans(),
)
def test_an_answer_is_well_formed_and_within_what_its_asker_takes(
    message: bytes, addresses: list[IPv4Address] | list[IPv6Address], is_alias: bool
) -> None:
    request = read_request(message)
    assert isinstance(request, Query)
    alias_of = request.name[:1] if is_alias and len(request.name) > 1 else None

    reply = encode_answer(request, addresses, alias_of=alias_of, limit=request.udp_limit).message(
        request.id, random.Random(1)
    )

    parsed = dns.message.from_wire(reply, one_rr_per_rrset=True)
    assert len(reply) <= request.udp_limit
    assert is_answer(reply, message)
    expected = len(addresses) + (alias_of is not None)
    assert len(parsed.answer) == expected or parsed.flags & dns.flags.TC


@given(queries(), st.integers(0, 65535))
def test_a_message_passed_on_changes_by_its_id_only(message: bytes, new: int) -> None:
    assert with_id(with_id(message, new), int.from_bytes(message[:2], "big")) == message


# RFC 5452 9.1: a resolver must match the question section, the id and the addresses.
@given(mangled(), mangled())
def test_matching_an_answer_never_fails(reply: bytes, query: bytes) -> None:
    if len(query) >= 12:
        is_answer(reply, query)
    if len(reply) >= 12:
        assert len(cut_to(reply, 512)) <= max(512, 12 + 259)


@given(st.binary(max_size=300) | mangled())
def test_reading_an_answer_fails_by_its_senders_fault_only(reply: bytes) -> None:
    with contextlib.suppress(PeerBrokeProtocol):
        read_addresses(reply)


MESH = reference_mesh()


@given(st.text("abcsv*.-", max_size=90), st.sampled_from([4, 6]))
def test_every_name_has_a_verdict_and_addresses_are_never_none(name: str, version: int) -> None:
    found = answer(name, version=version, client=CLIENT, mesh=MESH, settings=NameSettings())

    assert not isinstance(found, Addresses) or found.addresses


@given(st.text(max_size=200) | st.text("nameserver optionsdomainsearch1.:\n#", max_size=200))
def test_any_text_is_a_resolv_conf_or_names_no_server(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert parse_resolv_conf(text).servers
    parse_hosts(text)

"""Answers of the name server outside the mesh."""

import dns.flags
import dns.message
import dns.rcode
import pytest

from ztunnel_trio.lab.resolver import Data, Question, Resolver, Silence

ZONE: dict[tuple[str, str], Data] = {
    ("a.example.", "A"): ["192.0.2.1", "192.0.2.2"],
    ("empty.example.", "A"): [],
    ("broken.example.", "A"): dns.rcode.SERVFAIL,
    ("silent.example.", "A"): Silence(),
    ("long.example.", "TXT"): [f'"{"x" * 200} {number}"' for number in range(5)],
}


def asked(
    name: str, kind: str = "A", protocol: str = "udp", payload: int | None = None
) -> dns.message.Message | None:
    resolver = Resolver(dict(ZONE))
    query = dns.message.make_query(name, kind, use_edns=payload is not None, payload=payload or 0)
    wire = resolver.answer(query.to_wire(), protocol, "10.88.16.10")
    assert resolver.questions == [Question(f"{name.lower()}.", kind, protocol, "10.88.16.10")]
    return None if wire is None else dns.message.from_wire(wire)


def test_a_known_name_is_answered_whatever_its_case() -> None:
    answer = asked("A.example")

    assert answer is not None
    assert sorted(str(record) for record in answer.answer[0]) == ["192.0.2.1", "192.0.2.2"]


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("a.example", "AAAA", dns.rcode.NOERROR),
        ("empty.example", "A", dns.rcode.NOERROR),
        ("broken.example", "A", dns.rcode.SERVFAIL),
        ("unknown.example", "A", dns.rcode.NXDOMAIN),
    ],
)
def test_other_questions_get_their_code_and_no_records(name: str, kind: str, code: dns.rcode.Rcode) -> None:
    answer = asked(name, kind)

    assert answer is not None
    assert (answer.rcode(), answer.answer) == (code, [])


def test_silence_is_kept() -> None:
    assert asked("silent.example") is None


@pytest.mark.parametrize(
    ("protocol", "payload", "cut"), [("udp", None, True), ("udp", 4096, False), ("tcp", None, False)]
)
def test_a_long_answer_is_cut_where_it_does_not_fit(protocol: str, payload: int | None, cut: bool) -> None:
    answer = asked("long.example", "TXT", protocol, payload)

    assert answer is not None
    assert bool(answer.flags & dns.flags.TC) == cut


def test_junk_is_not_answered() -> None:
    assert Resolver().answer(b"junk", "udp", "10.88.16.10") is None
    assert Resolver().answer(b"", "tcp", "10.88.16.10") is None

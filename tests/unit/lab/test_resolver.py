"""Answers of the name server outside the mesh."""

import dns.flags
import dns.message
import dns.rcode
import pytest

from ztunnel_trio.lab.resolver import Data, Forged, Resolver, ResolverQuestion, Silence, mistakes

ZONE: dict[tuple[str, str], Data] = {
    ("a.example.", "A"): ["192.0.2.1", "192.0.2.2"],
    ("empty.example.", "A"): [],
    ("broken.example.", "A"): dns.rcode.SERVFAIL,
    ("silent.example.", "A"): Silence(),
    ("forged.example.", "A"): Forged(["192.0.2.3"], ["192.0.2.66"]),
    ("long.example.", "TXT"): [f'"{"x" * 200} {number}"' for number in range(5)],
}


def asked(
    name: str, kind: str = "A", protocol: str = "udp", payload: int | None = None
) -> dns.message.Message | None:
    resolver = Resolver(dict(ZONE))
    query = dns.message.make_query(name, kind, use_edns=payload is not None, payload=payload or 0)
    wire = resolver.answer(query.to_wire(), protocol, "10.88.16.10")
    assert resolver.questions == [ResolverQuestion(f"{name.lower()}.", kind, protocol, "10.88.16.10")]
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


def test_who_is_lied_about_is_answered_truly_in_the_end() -> None:
    answer = asked("forged.example")

    assert answer is not None
    assert [str(record) for record in answer.answer[0]] == ["192.0.2.3"]


def test_a_lie_is_the_right_answer_but_for_its_data_and_its_mistakes_one_each() -> None:
    query = dns.message.make_query("forged.example", "A")
    lie = Resolver(dict(ZONE)).lie(query.to_wire())
    other_id, other_question = (dns.message.from_wire(each) for each in mistakes(lie))

    assert lie is not None
    assert query.is_response(dns.message.from_wire(lie))
    assert str(dns.message.from_wire(lie).answer[0][0]) == "192.0.2.66"
    assert (other_id.id != query.id, other_id.question) == (True, query.question)
    assert (other_question.id == query.id, other_question.question != query.question) == (True, True)


def test_nobody_lies_about_other_names() -> None:
    resolver = Resolver(dict(ZONE))

    assert resolver.lie(dns.message.make_query("a.example", "A").to_wire()) is None
    assert resolver.lie(b"junk") is None
    assert mistakes(None) == []

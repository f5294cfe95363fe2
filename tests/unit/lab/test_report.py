"""What people read."""

import io

from rich.console import Console

from ztunnel_trio.lab.evidence import Finding, Story
from ztunnel_trio.lab.report import Account, PlainTeller, RichTeller, Teller, teller

GOOD = Story(
    title="a → b",
    path="node-1 → node-2",
    server_saw="spiffe://x",
    wire="TLS 1.3",
    verdict="allowed",
    findings=[Finding("it worked", kept=True)],
)
BAD = Story(
    title="a → b",
    path="",
    server_saw="",
    wire="payload SEEN IN CLEAR",
    verdict="failed: x",
    findings=[Finding("[it] did not", kept=False)],
)


def tell_all(tell: Teller, account: Account) -> None:
    tell.progress("building")
    for story in account.stories:
        tell.story(story)
    tell.deletion("p", account.deletion)
    tell.note("a note")
    tell.problem("a problem")
    tell.verdict(account, 1.25)


def test_only_a_whole_account_without_a_broken_promise_is_kept() -> None:
    gone = [Finding("gone", kept=True)]

    assert Account([GOOD], gone).kept
    assert not Account([GOOD, BAD], gone).kept
    assert not Account([GOOD], [Finding("gone", kept=False)]).kept
    assert not Account([], gone).kept
    assert not Account([GOOD], []).kept


def test_plain_lines_say_everything() -> None:
    stream = io.StringIO()
    tell_all(PlainTeller(stream), Account([GOOD, BAD], [Finding("gone", kept=True)]))

    text = stream.getvalue()
    assert "   ok   it worked\n" in text
    assert "   FAIL [it] did not\n" in text
    assert "ERROR a problem\n" in text
    assert "NOT as promised: 1 of 3 claims not borne out" in text


def test_rich_says_the_same_and_takes_no_text_for_markup() -> None:
    stream = io.StringIO()
    tell_all(RichTeller(Console(file=stream, width=100)), Account([GOOD, BAD], [Finding("gone", kept=True)]))

    text = stream.getvalue()
    assert "[it] did not" in text
    assert "1 of 3 claims" in text


def test_a_pipe_gets_plain_lines() -> None:
    assert isinstance(teller(io.StringIO()), PlainTeller)


def test_all_well_is_said_in_one_line() -> None:
    stream = io.StringIO()
    PlainTeller(stream).verdict(Account([GOOD], [Finding("gone", kept=True)]), 2.0)

    assert stream.getvalue().strip() == "all as promised: 2 of 2 claims borne out, 2.0 s"


def test_an_account_without_an_end_says_so() -> None:
    stream = io.StringIO()
    PlainTeller(stream).verdict(Account([GOOD], []), 2.0)

    assert "did not come to its end" in stream.getvalue()

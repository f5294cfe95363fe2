"""The revocation keeper: loading, following the file, and ending connections that were fine before."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.fakes.pki import Authority
from ztunnel_trio.certs.crl import REVOKED, UNREADABLE, CrlKeeper, Reporter
from ztunnel_trio.model.certificate import first_certificate, pem_blocks
from ztunnel_trio.model.identity import SpiffeId

NOW = datetime(2026, 5, 1, tzinfo=UTC)
ROOT = Authority.root("root")
IA = ROOT.intermediate("ia")
LEAVES = [
    first_certificate(IA.leaf(SpiffeId("td", "ns", f"sa{serial}"), NOW, NOW, serial=serial)[0])
    for serial in range(1, 4)
]
CHAINS = [[leaf, IA.der, ROOT.der] for leaf in LEAVES]


@dataclass(eq=False)
class Counts:
    rejections: list[str] = field(default_factory=list)
    untracked: list[str] = field(default_factory=list)

    def crl_rejection(self, reporter: Reporter, /) -> None:
        self.rejections.append(reporter)

    def crl_untracked(self, reporter: Reporter, /) -> None:
        self.untracked.append(reporter)


def opened(path: Path, counts: Counts | None = None) -> CrlKeeper:
    keeper = CrlKeeper.open(str(path), counts or Counts())
    assert keeper is not None
    return keeper


def follow(keeper: CrlKeeper, body: Callable[[], Awaitable[None]]) -> None:
    """Run `body` beside the keeper. The clock jumps only when the loading thread has had its time."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(keeper.run)
            await body()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.02))


def write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ca-crl.pem"


def test_a_missing_file_is_waited_for(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    keeper = opened(file)
    assert "does not exist" in caplog.text

    async def body() -> None:
        assert keeper.verdict(CHAINS[0], reporter="source") is None
        write(file, IA.revocations(1))
        await trio.sleep(5)
        assert keeper.verdict(CHAINS[0], reporter="source") == REVOKED

    follow(keeper, body)


def test_junk_at_start_switches_revocation_off(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text("junk")

    assert CrlKeeper.open(str(file), Counts()) is None
    assert "failed to initialize crl manager: invalid CRL" in caplog.text


def test_an_empty_file_is_a_list_that_revokes_nothing(file: Path) -> None:
    file.write_bytes(b"")

    keeper = opened(file)

    assert keeper.generation == 1
    assert keeper.verdict(CHAINS[0], reporter="source") is None


def test_new_peers_are_judged_by_leaf_and_intermediate(file: Path) -> None:
    counts = Counts()
    file.write_text(IA.revocations(1))
    keeper = opened(file, counts)

    assert keeper.verdict(CHAINS[0], reporter="destination") == REVOKED
    assert keeper.verdict(CHAINS[1], reporter="destination") is None
    assert keeper.verdict([b"junk", IA.der], reporter="destination") == UNREADABLE
    assert counts.rejections == ["destination"]


def test_a_reload_ends_the_connections_it_names_and_no_other(file: Path) -> None:
    counts, ended = Counts(), list[int]()
    file.write_text(IA.revocations())
    keeper = opened(file, counts)
    for number, chain in enumerate(CHAINS):
        keeper.register(chain, lambda number=number: ended.append(number), reporter="source")  # type: ignore[misc]

    async def body() -> None:
        await trio.sleep(3)
        assert ended == []
        write(file, IA.revocations(2) + ROOT.revocations(99))
        await trio.sleep(5)
        assert ended == [1]
        write(file, ROOT.revocations(IA.certificate.serial_number))
        await trio.sleep(5)
        write(file, IA.revocations(1, 2, 3))  # nobody is left to be ended
        await trio.sleep(5)

    follow(keeper, body)

    assert ended == [1, 0, 2]
    assert counts.rejections == ["source"] * 3


def test_a_connection_already_revoked_ends_at_registration(file: Path) -> None:
    ended: list[int] = []
    counts = Counts()
    file.write_text(IA.revocations(1))
    keeper = opened(file, counts)

    keeper.register(CHAINS[0], lambda: ended.append(0), reporter="destination").release()

    assert (ended, counts.rejections) == ([0], ["destination"])


def test_a_connection_that_cannot_be_read_is_counted_and_lives_on(file: Path) -> None:
    counts = Counts()
    file.write_bytes(b"")
    keeper = opened(file, counts)

    keeper.register([b"junk", ROOT.der], lambda: None, reporter="source").release()

    assert counts.untracked == ["source"]


def test_a_connection_that_ended_is_not_called_back(file: Path) -> None:
    ended: list[int] = []
    file.write_bytes(b"")
    keeper = opened(file)
    registration = keeper.register(CHAINS[0], lambda: ended.append(0), reporter="source")
    registration.release()

    async def body() -> None:
        write(file, IA.revocations(1))
        await trio.sleep(5)

    follow(keeper, body)

    assert ended == []


def test_a_bad_reload_leaves_the_list_before_in_force(file: Path) -> None:
    file.write_text(IA.revocations(1))
    keeper = opened(file)

    async def body() -> None:
        for content in ("junk", None):
            if content is None:
                os.unlink(file)
            else:
                write(file, content)
            await trio.sleep(5)
            assert keeper.generation == 1
            assert keeper.verdict(CHAINS[0], reporter="source") == REVOKED

    follow(keeper, body)


def test_a_link_swapped_as_kubernetes_does_is_a_change_and_changes_settle_first(tmp_path: Path) -> None:
    for name, text in (("one", IA.revocations()), ("two", IA.revocations(1))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ca-crl.pem").write_text(text)
    data = tmp_path / "..data"
    data.symlink_to("one")
    (tmp_path / "ca-crl.pem").symlink_to("..data/ca-crl.pem")
    keeper = opened(tmp_path / "ca-crl.pem")

    async def body() -> None:
        (tmp_path / "swap").symlink_to("two")
        (tmp_path / "swap").rename(data)
        await trio.sleep(2.5)
        assert keeper.generation == 1
        os.utime(tmp_path / "two" / "ca-crl.pem", ns=(1, 1))
        await trio.sleep(2)
        assert keeper.generation == 1
        await trio.sleep(4)
        assert keeper.generation == 2

    follow(keeper, body)

    assert keeper.verdict(CHAINS[0], reporter="source") == REVOKED


def test_a_list_past_its_next_update_is_warned_of_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(file, IA.revocations(1, next_update=NOW))
    ahead = timedelta(seconds=-2)
    keeper = CrlKeeper(str(file), Counts(), now=lambda: NOW + ahead + timedelta(seconds=trio.current_time()))

    async def body() -> None:
        nonlocal ahead
        await trio.sleep(4)
        assert keeper.seconds_left() is not None
        began = trio.current_time()
        assert keeper.seconds_left() == pytest.approx(2 - began, abs=0.01)
        ahead = timedelta(seconds=3600)
        await trio.sleep(3)
        assert keeper.verdict(CHAINS[0], reporter="source") == REVOKED

    follow(keeper, body)

    assert caplog.text.count("should have been replaced by 2026-05-01 00:00:00+00:00") == 1


def pushed(authority: Authority, *serials: int) -> bytes:
    """A list as it comes with a certificate: DER."""
    (der,) = [der for _, der in pem_blocks(authority.revocations(*serials))]
    return der


def test_pushed_lists_count_beside_those_of_the_file_until_others_are_pushed(file: Path) -> None:
    file.write_text(IA.revocations(1))
    keeper = opened(file)

    keeper.push([pushed(IA, 2)])
    verdicts = [keeper.verdict(chain, reporter="source") for chain in CHAINS]
    assert verdicts == [REVOKED, REVOKED, None]
    keeper.push([pushed(IA, 3)])
    verdicts = [keeper.verdict(chain, reporter="source") for chain in CHAINS]
    assert verdicts == [REVOKED, None, REVOKED]


def test_pushed_lists_end_open_connections_also_where_there_is_no_file() -> None:
    ended: list[int] = []
    keeper = CrlKeeper(None, Counts())

    async def body() -> None:
        for number, chain in enumerate(CHAINS):
            keeper.register(chain, partial(ended.append, number), reporter="source")
        keeper.push([pushed(IA, 2)])
        await trio.testing.wait_all_tasks_blocked()
        assert ended == [1]

    follow(keeper, body)


def test_a_pushed_list_that_cannot_be_read_is_left_out_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    keeper = CrlKeeper(None, Counts())

    keeper.push([b"\x30\x03abc", pushed(IA, 1)])

    assert keeper.verdict(CHAINS[0], reporter="source") == REVOKED
    assert "a revocation list that came with a certificate is left out: invalid CRL" in caplog.text

"""In-pod messages under arbitrary input, and the roster under arbitrary histories."""

import contextlib
from collections import deque
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.inpod.roster import (
    Acknowledge,
    CloseNetns,
    Connected,
    Disconnected,
    Ended,
    EndProcess,
    Event,
    ProxyStarted,
    Reconnect,
    RequestUnreadable,
    RetryAfter,
    RetryDue,
    Roster,
    StartFailed,
    StartProxy,
    StopProxy,
)
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.wire import zds
from ztunnel_trio.wire.zds import PodAdded, PodDeleted, PodKept, SnapshotSent

INFO = WorkloadInfo("name", "ns", "sa")


class Handle:
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def mutated(draw: st.DrawFn) -> bytes:
    """A real message with a few bytes changed: reaches deeper than noise."""
    text = st.text(max_size=8)
    info = st.builds(WorkloadInfo, text, text, text)
    real = st.one_of(
        st.builds(zds.add, text, info),
        st.builds(zds.keep, text),
        st.builds(zds.delete, text),
        st.just(zds.snapshot_sent()),
    )
    data = bytearray(draw(real))
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


datagrams = st.one_of(st.binary(max_size=64), st.composite(mutated)())


@settings(max_examples=400)
@given(datagrams, st.integers(0, 3), st.booleans())
def test_any_datagram_is_an_event_or_the_peers_fault(data: bytes, count: int, truncated: bool) -> None:
    """Descriptors are taken into ownership before any other check so that nothing leaks."""
    handles = [Handle() for _ in range(count)]
    try:
        event = zds.decode(data, handles, truncated=truncated)
    except PeerBrokeProtocol:
        assert all(handle.closed == 1 for handle in handles)
        return
    match event:
        case PodAdded(uid, info, netns):
            assert [netns] == handles
            parts = (info.name, info.namespace, info.service_account) if info else ()
            assert all(type(part) is str for part in (uid, *parts))
        case PodKept(uid) | PodDeleted(uid):
            assert not handles
            assert type(uid) is str
        case SnapshotSent():
            assert not handles
    assert all(handle.closed == 0 for handle in handles)


@settings(max_examples=200)
@given(datagrams)
def test_any_answer_is_text_or_the_peers_fault(data: bytes) -> None:
    with contextlib.suppress(PeerBrokeProtocol):
        assert isinstance(zds.decode_ack(data), str)


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_decoding_undoes_encoding(uid: str, name: str, namespace: str, account: str) -> None:
    info = WorkloadInfo(name, namespace, account)
    handle = Handle()
    none: list[Handle] = []
    assert zds.decode(zds.add(uid, info), [handle], truncated=False) == PodAdded(uid, info, handle)
    assert zds.decode(zds.keep(uid), none, truncated=False) == PodKept(uid)
    assert zds.decode(zds.delete(uid), none, truncated=False) == PodDeleted(uid)
    assert zds.decode_ack(zds.ack(uid)) == uid


@dataclass(eq=False)
class Place:
    """A namespace: several handles may stand for one."""

    key: tuple[int, int]
    closed: int = 0
    taken_over: bool = False

    def close(self) -> None:
        self.closed += 1


@dataclass(frozen=True)
class Add:
    uid: str
    inode: int
    works: bool
    is_described: bool


@dataclass(frozen=True)
class Retry:
    works: bool


uids = st.sampled_from(["a", "b", "c"])
moves = st.lists(
    st.one_of(
        st.builds(Add, uids, st.integers(1, 3), st.booleans(), st.sampled_from([True, True, True, False])),
        st.builds(PodKept, uids),
        st.builds(PodDeleted, uids),
        st.just(SnapshotSent()),
        st.builds(Retry, st.booleans()),
        st.just(RequestUnreadable("?")),
        st.just(Disconnected()),
    ),
    max_size=40,
)


class Shell:
    """Performs the roster's actions on nothing, and keeps the books."""

    def __init__(self) -> None:
        self.roster: Roster[Place] = Roster()
        self.places: list[Place] = []
        self.served: dict[str, Place] = {}
        self.retry_is_set = False

    def feed(self, event: Event[Place], *, works: bool = True) -> list[str]:
        """Everything that follows; the answers given."""
        answers: list[str] = []
        todo = deque(self.roster.receive(event))
        while todo:
            match todo.popleft():
                case StartProxy(uid, _, netns):
                    assert uid not in self.served, "two proxies of one pod"
                    assert not netns.closed
                    if works:
                        netns.taken_over, self.served[uid] = True, netns
                    todo.extend(self.roster.receive(ProxyStarted(uid) if works else StartFailed(uid, "no")))
                case StopProxy(uid):
                    if (place := self.served.pop(uid, None)) is not None:
                        place.close()
                case CloseNetns(netns):
                    assert not netns.taken_over
                    netns.close()
                case Acknowledge(error):
                    answers.append(error)
                case RetryAfter():
                    assert not self.retry_is_set, "one timer a connection"
                    self.retry_is_set = True
                case Reconnect() | EndProcess():
                    answers.append("!")
        return answers


@settings(max_examples=200)
@given(moves)
def test_every_agent_message_gets_exactly_one_ack_and_no_namespace_leaks(history: list[object]) -> None:
    """Strictly request and acknowledge: at most one request is outstanding, acks carry no id."""
    shell = Shell()
    shell.feed(Connected())
    for move in history:
        works = True
        event: Event[Place]
        match move:
            case Add(uid, inode, works, is_described):
                place = Place((0, inode))
                shell.places.append(place)
                event = PodAdded(uid, INFO if is_described else None, place)
            case Retry(works):
                if not shell.retry_is_set:
                    continue
                shell.retry_is_set = False
                assert shell.feed(RetryDue(), works=works) == []
                assert shell.retry_is_set == bool(shell.roster.pending)
                continue
            case Disconnected():
                assert shell.feed(Disconnected()) == []
                assert not shell.roster.is_ready
                assert shell.feed(Connected()) == []
                shell.retry_is_set = False
                continue
            case PodKept() | PodDeleted() | SnapshotSent() | RequestUnreadable():
                event = move
            case _:
                raise AssertionError(move)
        answers = shell.feed(event, works=works)
        assert len([answer for answer in answers if answer != "!"]) == 1
        assert answers[0] != "!", "the answer comes before the end"
        assert set(shell.served) == set(shell.roster.running)
        assert not set(shell.roster.running) & set(shell.roster.pending)
        if "!" in answers:
            shell.feed(Connected())
            shell.retry_is_set = False
    shell.feed(Ended())
    for place in shell.places:
        assert place.closed == (place not in shell.served.values()), "closed once, unless in use"

"""Which pods are served: events in, actions out."""

from dataclasses import dataclass

import pytest

from ztunnel_trio.errors import WeBrokeProtocol
from ztunnel_trio.inpod.roster import (
    RETRY_SECONDS,
    Acknowledge,
    Action,
    CloseNetns,
    Connected,
    Disconnected,
    Ended,
    EndProcess,
    Event,
    NamespaceUnusable,
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
from ztunnel_trio.wire.zds import PodAdded, PodDeleted, PodKept, SnapshotSent

INFO = WorkloadInfo("name", "ns", "sa")
TAKEN = "failed to bind to address [::]:15008: Address already in use (os error 98)"
REFUSED = Acknowledge(f"failure to start proxy : {TAKEN}")


@dataclass(frozen=True, eq=False)
class Place:
    """A handle on a namespace; several may stand for one."""

    key: tuple[int, int]

    def close(self) -> None:
        raise AssertionError("a core closes nothing itself")


def place(inode: int) -> Place:
    return Place((4, inode))


def connected(*served: str, inode: int = 1) -> Roster[Place]:
    """A roster on a new connection, serving these pods since an earlier one."""
    roster: Roster[Place] = Roster()
    for uid in served:
        roster.receive(PodAdded(uid, INFO, place(inode)))
        roster.receive(ProxyStarted(uid))
    roster.receive(Disconnected())
    assert roster.receive(Connected()) == []
    return roster


def feed(roster: Roster[Place], *events: Event[Place]) -> list[Action[Place]]:
    """What the last of these events leads to."""
    actions: list[Action[Place]] = []
    for event in events:
        actions = roster.receive(event)
    return actions


def test_add_workload_starts_a_proxy() -> None:
    roster, netns = connected(), place(1)

    assert roster.receive(PodAdded("web", INFO, netns)) == [StartProxy("web", INFO, netns)]
    assert roster.waiting == {"web": INFO}
    assert roster.receive(ProxyStarted("web")) == [Acknowledge()]
    assert roster.running["web"].info == INFO


def test_a_pod_added_twice_in_one_namespace_has_one_proxy() -> None:
    roster, again = connected(), place(1)
    feed(roster, PodAdded("web", INFO, place(1)), ProxyStarted("web"))

    assert roster.receive(PodAdded("web", INFO, again)) == [CloseNetns(again), Acknowledge()]
    assert list(roster.running) == ["web"]


def test_a_pod_whose_description_changed_keeps_its_proxy() -> None:
    roster, again = connected("web"), place(1)

    other = WorkloadInfo("other", "ns", "sa")
    assert roster.receive(PodAdded("web", other, again)) == [CloseNetns(again), Acknowledge()]
    assert roster.running["web"].info == INFO


def test_a_proxy_that_cannot_start_is_refused_and_tried_again() -> None:
    roster, netns = connected(), place(1)
    assert feed(roster, PodAdded("web", INFO, netns), StartFailed("web", TAKEN)) == [
        REFUSED,
        RetryAfter(RETRY_SECONDS),
    ]
    assert list(roster.pending) == ["web"]

    assert roster.receive(RetryDue()) == [StartProxy("web", INFO, netns, is_retry=True)]
    assert roster.receive(ProxyStarted("web")) == [], "nobody waits for an answer to a retry"
    assert roster.pending == {}
    assert list(roster.running) == ["web"]


def test_a_retry_that_fails_sets_the_next_one() -> None:
    roster, netns = connected(), place(1)
    feed(roster, PodAdded("web", INFO, netns), StartFailed("web", TAKEN), RetryDue())

    assert roster.receive(StartFailed("web", TAKEN)) == [RetryAfter(RETRY_SECONDS)]
    assert roster.receive(RetryDue()) == [StartProxy("web", INFO, netns, is_retry=True)]


def test_one_timer_serves_all_pending_pods() -> None:
    roster, a, b = connected(), place(1), place(2)
    feed(roster, PodAdded("a", INFO, a), StartFailed("a", TAKEN))

    assert feed(roster, PodAdded("b", INFO, b), StartFailed("b", TAKEN)) == [REFUSED]
    assert roster.receive(RetryDue()) == [
        StartProxy("a", INFO, a, is_retry=True),
        StartProxy("b", INFO, b, is_retry=True),
    ]


def test_workload_added_while_pending() -> None:
    roster, first, second = connected(), place(1), place(2)
    feed(roster, PodAdded("web", INFO, first), StartFailed("web", TAKEN))

    assert roster.receive(PodAdded("web", INFO, second)) == [StartProxy("web", INFO, second)]
    assert roster.receive(ProxyStarted("web")) == [CloseNetns(first), Acknowledge()]
    assert roster.receive(RetryDue()) == []
    assert roster.pending == {}
    assert list(roster.running) == ["web"]


def test_a_pod_that_fails_again_waits_with_its_newest_namespace() -> None:
    roster, first, second = connected(), place(1), place(2)
    feed(roster, PodAdded("web", INFO, first), StartFailed("web", TAKEN), PodAdded("web", INFO, second))

    assert roster.receive(StartFailed("web", TAKEN)) == [CloseNetns(first), REFUSED]
    assert roster.pending["web"].netns is second


def test_a_pending_pod_can_be_deleted() -> None:
    roster, netns = connected(), place(1)
    feed(roster, SnapshotSent(), PodAdded("web", INFO, netns), StartFailed("web", TAKEN))
    assert not roster.is_ready

    assert roster.receive(PodDeleted("web")) == [StopProxy("web"), CloseNetns(netns), Acknowledge()]
    assert roster.pending == {}
    assert roster.is_ready
    assert roster.receive(RetryDue()) == []


def test_a_pod_deleted_before_the_snapshot_leaves_names_and_pending() -> None:
    roster, netns = connected(), place(1)
    feed(roster, PodAdded("web", INFO, netns), StartFailed("web", TAKEN))
    assert roster.named == {"web"}

    assert roster.receive(PodDeleted("web")) == [StopProxy("web"), CloseNetns(netns), Acknowledge()]
    assert roster.named == set()
    assert roster.receive(SnapshotSent()) == [Acknowledge()]
    assert roster.pending == {}


def test_a_running_pod_deleted_before_the_snapshot_goes_with_the_snapshot() -> None:
    roster = connected("web")

    assert feed(roster, PodKept("web"), PodDeleted("web")) == [Acknowledge()]
    assert "web" in roster.running
    assert roster.receive(SnapshotSent()) == [StopProxy("web"), Acknowledge()]
    assert roster.running == {}


def test_a_pod_deleted_after_the_snapshot_stops_at_once() -> None:
    roster = connected("web")
    feed(roster, PodKept("web"), SnapshotSent())

    assert roster.receive(PodDeleted("web")) == [StopProxy("web"), Acknowledge()]
    assert roster.running == {}
    assert roster.is_ready


def test_deleting_a_stranger_is_fine() -> None:
    assert connected().receive(PodDeleted("who")) == [Acknowledge()]
    assert feed(connected(), SnapshotSent(), PodDeleted("who")) == [Acknowledge()]


def test_a_pod_added_deleted_and_added_again_is_served() -> None:
    roster, netns = connected(), place(1)
    feed(roster, SnapshotSent(), PodAdded("web", INFO, place(1)), ProxyStarted("web"))

    assert roster.receive(PodDeleted("web")) == [StopProxy("web"), Acknowledge()]
    assert roster.receive(PodAdded("web", INFO, netns)) == [StartProxy("web", INFO, netns)]
    assert roster.receive(ProxyStarted("web")) == [Acknowledge()]


def test_proxy_added_then_kept_with_new_snapshot() -> None:
    roster = connected()
    feed(roster, PodAdded("web", INFO, place(1)), ProxyStarted("web"), SnapshotSent())
    feed(roster, Disconnected(), Connected())

    assert roster.receive(PodKept("web")) == [Acknowledge()]
    assert roster.receive(SnapshotSent()) == [Acknowledge()]
    assert list(roster.running) == ["web"]


def test_a_pod_readded_in_a_new_namespace_has_its_proxy_restarted() -> None:
    roster, new = connected("web", inode=1), place(2)

    assert roster.receive(PodAdded("web", INFO, new)) == [StopProxy("web"), StartProxy("web", INFO, new)]
    assert roster.receive(ProxyStarted("web")) == [Acknowledge()]
    assert len(roster.running) == 1


def test_the_same_inode_on_another_device_is_another_namespace() -> None:
    roster, new = connected("web", inode=1), Place((5, 1))
    assert roster.receive(PodAdded("web", INFO, new)) == [StopProxy("web"), StartProxy("web", INFO, new)]


def test_a_restarted_proxy_that_fails_is_pending_and_no_longer_running() -> None:
    roster = connected("web", inode=1)
    feed(roster, PodAdded("web", INFO, place(2)), StartFailed("web", TAKEN))

    assert roster.running == {}
    assert list(roster.pending) == ["web"]


def test_the_snapshot_stops_pods_it_did_not_name() -> None:
    roster = connected("a", "b", "c")

    feed(roster, PodKept("b"), PodAdded("c", INFO, place(1)))

    assert roster.receive(SnapshotSent()) == [StopProxy("a"), Acknowledge()]
    assert list(roster.running) == ["b", "c"]


def test_a_snapshot_of_nothing_stops_everybody() -> None:
    roster = connected("a", "b")
    assert roster.receive(SnapshotSent()) == [StopProxy("a"), StopProxy("b"), Acknowledge()]
    assert roster.is_ready


def test_a_reconnect_keeps_proxies_and_forgets_what_was_pending_and_named() -> None:
    roster, netns = connected("a"), place(2)
    feed(roster, PodKept("a"), PodAdded("b", INFO, netns), StartFailed("b", TAKEN), SnapshotSent())
    roster.receive(Disconnected())
    assert list(roster.pending) == ["b"]

    assert roster.receive(Connected()) == [StopProxy("b"), CloseNetns(netns)]
    assert list(roster.running) == ["a"]
    assert roster.pending == {}
    assert roster.named == set()
    assert not roster.is_ready


def test_a_new_connection_sets_a_new_timer() -> None:
    roster = connected()
    feed(roster, PodAdded("a", INFO, place(1)), StartFailed("a", TAKEN), Disconnected(), Connected())

    actions = feed(roster, PodAdded("a", INFO, place(1)), StartFailed("a", TAKEN))
    assert actions == [REFUSED, RetryAfter(RETRY_SECONDS)]


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (PodKept("web"), "pod keep received after snapshot"),
        (SnapshotSent(), "pod snapshot received already"),
    ],
)
def test_what_may_only_come_before_the_snapshot_is_fatal_after(event: Event[Place], text: str) -> None:
    roster = connected("web")
    roster.receive(SnapshotSent())

    assert roster.receive(event) == [Acknowledge(f"failure to process message : {text}"), EndProcess(text)]


def test_no_workload_info_rejected() -> None:
    netns, text = place(1), "workload_info is required but not present"

    assert connected().receive(PodAdded("web", None, netns)) == [
        CloseNetns(netns),
        Acknowledge(f"failure to process message : {text}"),
        EndProcess(text),
    ]


def test_an_unreadable_request_is_answered_and_ends_the_connection() -> None:
    assert connected().receive(RequestUnreadable("no payload")) == [
        Acknowledge("failure to read message : no payload"),
        Reconnect(),
    ]


def test_a_namespace_that_cannot_be_examined_is_refused_without_retry() -> None:
    roster = connected()
    assert roster.receive(NamespaceUnusable("web", "Bad file descriptor (os error 9)")) == [
        Acknowledge("failure to start proxy : Bad file descriptor (os error 9)")
    ]
    assert roster.pending == {}
    assert roster.named == {"web"}


def test_readiness_needs_the_snapshot_and_every_pod_served() -> None:
    roster = connected()
    assert not roster.is_ready
    feed(roster, PodAdded("a", INFO, place(1)), StartFailed("a", TAKEN), SnapshotSent())
    assert not roster.is_ready

    feed(roster, RetryDue(), ProxyStarted("a"))
    assert roster.is_ready

    roster.receive(Disconnected())
    assert not roster.is_ready


def test_at_the_end_everything_not_running_is_let_go() -> None:
    roster, waiting, starting = connected("a"), place(2), place(3)
    feed(roster, PodAdded("b", INFO, waiting), StartFailed("b", TAKEN), PodAdded("c", INFO, starting))

    assert roster.receive(Ended()) == [
        StopProxy("b"),
        CloseNetns(waiting),
        StopProxy("c"),
        CloseNetns(starting),
    ]
    assert roster.waiting == {}


def test_at_the_end_a_retry_under_way_is_let_go_once() -> None:
    roster, netns = connected(), place(2)
    feed(roster, PodAdded("b", INFO, netns), StartFailed("b", TAKEN), RetryDue())

    assert roster.receive(Ended()) == [StopProxy("b"), CloseNetns(netns)]


def test_a_completion_nobody_asked_for_is_our_bug() -> None:
    with pytest.raises(WeBrokeProtocol):
        connected().receive(ProxyStarted("web"))
    with pytest.raises(WeBrokeProtocol):
        connected().receive(StartFailed("web", ""))

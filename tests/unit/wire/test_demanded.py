"""When keys that stand for nothing are forgotten."""

from ztunnel_trio.wire.demanded import FORGET_SECONDS, DemandedKeys

MANY = 256


def test_a_key_that_stands_for_nothing_is_forgotten_after_its_last_use() -> None:
    keys = DemandedKeys()
    keys.use("a", 0.0)
    keys.use("b", 10.0)
    keys.use("a", 20.0)

    assert keys.next_forgetting() == 10.0 + FORGET_SECONDS
    assert keys.forget(10.0 + FORGET_SECONDS - 0.1, MANY) == []
    assert keys.forget(10.0 + FORGET_SECONDS, MANY) == ["b"]
    assert keys.forget(20.0 + FORGET_SECONDS, MANY) == ["a"]
    assert keys.next_forgetting() is None


def test_a_key_that_leads_to_something_is_kept_until_that_is_gone() -> None:
    keys = DemandedKeys()
    keys.use("/10.0.0.1", 0.0)
    keys.is_found("uid", ("/10.0.0.1",))
    keys.is_found("twin", ("/10.0.0.1",))
    keys.use("/10.0.0.1", 30.0)
    assert keys.forget(1e9, MANY) == []

    keys.is_gone("uid")
    assert keys.next_forgetting() is None
    keys.is_gone("twin")
    assert keys.next_forgetting() == 30.0 + FORGET_SECONDS
    assert keys.forget(30.0 + FORGET_SECONDS, MANY) == ["/10.0.0.1"]


def test_what_nobody_asked_for_leaves_no_trace() -> None:
    keys = DemandedKeys()
    keys.is_found("uid", ("/10.0.0.1",))
    keys.is_gone("uid")
    keys.is_gone("never there")

    assert keys.forget(1e9, MANY) == []


def test_only_so_many_are_kept_the_oldest_go_first() -> None:
    keys = DemandedKeys(kept=2)
    for n, key in enumerate("abcd"):
        keys.use(key, float(n))

    assert keys.next_forgetting() == 0.0
    assert keys.forget(4.0, 1) == ["a"]
    assert keys.forget(4.0, MANY) == ["b"]
    assert keys.forget(4.0, MANY) == []

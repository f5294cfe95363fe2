import pytest

from ztunnel_trio.shortcuts import accepting, queued, tls, tls_messages
from ztunnel_trio.shortcuts.report import report


def test_each_shortcut_says_which_way_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    short = report(is_in_front=True)
    for module in (accepting, queued, tls, tls_messages):
        monkeypatch.setattr(module, "is_short", lambda: False)
    plain = report(is_in_front=False)

    assert short == {
        "accept": "socket._accept",
        "queued": "FIONREAD",
        "tls": "SSLSocket._sslobj",
        "tls messages": "SSLContext._msg_callback",
        "wait": "in front of Trio's",
    }
    assert short.keys() == plain.keys()
    assert not set(short.values()) & set(plain.values())

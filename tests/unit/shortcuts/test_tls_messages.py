import ssl

import pytest

from ztunnel_trio.shortcuts import tls_messages
from ztunnel_trio.shortcuts.tls_messages import CLIENT_HELLO, Connection


def test_a_client_hello_is_seen_before_it_leaves() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    seen: list[tuple[str, int, int]] = []

    def note(
        _tls: Connection, direction: str, _version: int, content: int, kind: int, message: bytes
    ) -> None:
        seen.append((direction, kind, message[0] if message else -1))

    assert tls_messages.watch(context, note)
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO()).do_handshake()
    assert ("write", CLIENT_HELLO, CLIENT_HELLO) in seen


def test_it_works_here() -> None:
    assert tls_messages.works()
    assert tls_messages.is_short()


def test_where_nobody_calls_back_who_asks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_messages, "short", lambda context, seen: None)
    assert not tls_messages.works()
    monkeypatch.setattr(tls_messages, "is_short", tls_messages.works)

    def never(*_: object) -> None:
        raise AssertionError

    assert not tls_messages.watch(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), never)

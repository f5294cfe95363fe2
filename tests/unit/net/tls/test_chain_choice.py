"""The look into a peer's chain before OpenSSL acts on it: whatever it holds, nothing is raised."""

import ssl
from collections.abc import Callable
from typing import cast

import pytest

from tests.fakes.pki import Authority
from ztunnel_trio.net.tls.chain_choice import (
    CERTIFICATE_MESSAGE,
    HANDSHAKE,
    TLS13_WIRE_VERSION,
    choose_context_by_chain,
)

ROOT = Authority.root("cluster.local")
LEAF = ROOT.intermediate("intermediary").der

Callback = Callable[[object, str, int, int, int, bytes], None]


class Connection:
    """What the callback may hand to another context."""

    context: object = None


def look_at(*chain: bytes) -> object:
    """The context that a chain leads to, None for the one it came with."""
    connection, chosen = Connection(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    choose_context_by_chain(context, {ROOT.der: chosen})
    entries = b"".join(len(each).to_bytes(3, "big") + each + b"\0\0" for each in chain)
    message = bytes([CERTIFICATE_MESSAGE, 0, 0, 0, 0]) + len(entries).to_bytes(3, "big") + entries
    callback = cast("Callback", context._msg_callback)  # type: ignore[attr-defined]  # private
    callback(connection, "read", TLS13_WIRE_VERSION, HANDSHAKE, CERTIFICATE_MESSAGE, message)
    return "chosen" if connection.context is chosen else connection.context


def test_a_chain_leads_to_the_root_that_signed_it() -> None:
    assert look_at(LEAF) == "chosen"
    assert look_at(Authority.root("stranger").der) is None


@pytest.mark.parametrize("name", [b"cluster.local", b"intermediary"])
def test_a_name_that_is_no_text_is_nobodys(name: bytes) -> None:
    broken = LEAF.replace(name, b"\xff\xfe" + name[2:])
    assert broken != LEAF

    assert look_at(broken) in (None, "chosen")


@pytest.mark.parametrize("chain", [(), (b"",), (b"\x30\x03junk",), (LEAF[:40],)])
def test_what_is_no_certificate_is_left_to_openssl(chain: tuple[bytes, ...]) -> None:
    assert look_at(*chain) is None

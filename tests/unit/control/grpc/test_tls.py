"""Whom a client trusts, and which names a certificate is for."""

from pathlib import Path

import pytest

from tests.fakes.echo_server import ECHO, ROOT, serving, to
from tests.fakes.pki import Authority
from tests.fakes.trio_test import trio_test
from ztunnel_trio.control import grpc
from ztunnel_trio.control.grpc import NotConnected, PemRoots
from ztunnel_trio.control.grpc.tls import name_matches


@pytest.mark.parametrize("roots", [PemRoots(()), PemRoots((Authority.root("other").der,))])
@trio_test
async def test_a_server_of_another_root_is_refused(server_files: Path, roots: PemRoots) -> None:
    async with serving(server_files) as served:
        with pytest.raises(NotConnected, match="invalid peer certificate: "):
            async with grpc.open_channel(to(served.port), roots):
                raise AssertionError("connected")


@trio_test
async def test_a_root_that_cannot_be_used_does_not_spoil_the_others(server_files: Path) -> None:
    roots = PemRoots((b"junk", ROOT.der))
    async with serving(server_files) as served, grpc.open_channel(to(served.port), roots) as channel:
        assert await channel.call(ECHO, b"x", {}) == b"x"


def test_names_match_as_rfc_6125_says() -> None:
    certificate = {
        "subjectAltName": (
            ("DNS", "istiod.istio-system.svc"),
            ("DNS", "*.Example.com"),
            ("IP Address", "10.0.0.1"),
        )
    }
    matches = ["istiod.istio-system.svc", "ISTIOD.istio-system.svc", "a.example.com", "10.0.0.1"]
    others = ["istiod", "example.com", "a.b.example.com", "10.0.0.2", "*.com", "", "svc"]

    assert all(name_matches(certificate, name) for name in matches)
    assert not any(name_matches(certificate, name) for name in others)
    assert not name_matches({}, "a")
    assert not name_matches({"subjectAltName": (("DNS", "*.com"),)}, "example.com")

import json

import pytest

from tests.fakes.machine import loaded
from ztunnel_trio.config.document import dump_config
from ztunnel_trio.facts.defaults import ROOT_FILE, TOKEN_FILE
from ztunnel_trio.model.source import FromFile, Literal, SystemRoots


@pytest.mark.parametrize(
    ("environ", "xds", "ca"),
    [
        ({"KUBERNETES_SERVICE_HOST": ""}, "https://istiod.istio-system.svc:15012", "same"),
        ({"XDS_ADDRESS": ""}, None, "https://localhost:15012"),
        ({"XDS_ADDRESS": "istiod:15012", "CA_ADDRESS": "HTTPS://ca"}, "https://istiod:15012", "HTTPS://ca"),
        ({"PROXY_CONFIG": "discoveryAddress: d:1"}, "https://d:1", "https://localhost:15012"),
        ({"FAKE_CA": "true", "CA_ADDRESS": ""}, "https://localhost:15012", None),
    ],
)
def test_addresses_of_control_plane_and_ca(environ: dict[str, str], xds: str | None, ca: str | None) -> None:
    config = loaded(environ)

    assert (None if config.control.xds_address is None else str(config.control.xds_address)) == xds
    assert (None if config.control.ca_address is None else str(config.control.ca_address)) == (
        xds if ca == "same" else ca
    )


@pytest.mark.parametrize(
    ("environ", "files", "roots"),
    [
        ({}, {ROOT_FILE: "PEM"}, FromFile(ROOT_FILE)),
        ({}, {}, Literal(ROOT_FILE)),
        ({"XDS_ROOT_CA": "/roots.pem"}, {"/roots.pem": "PEM"}, FromFile("/roots.pem")),
        ({"XDS_ROOT_CA": "SYSTEM"}, {}, SystemRoots()),
        ({"XDS_ROOT_CA": "SYSTEM"}, {"SYSTEM": "PEM"}, FromFile("SYSTEM")),
        ({"XDS_ROOT_CA": "-----BEGIN CERTIFICATE-----"}, {}, Literal("-----BEGIN CERTIFICATE-----")),
    ],
)
def test_trusted_roots(environ: dict[str, str], files: dict[str, str], roots: object) -> None:
    assert loaded(environ, files).control.xds_root_cert == roots


def test_a_root_file_that_is_missing_is_told() -> None:
    notes = loaded({"XDS_ROOT_CA": "/missing"}).notes

    assert any("XDS_ROOT_CA: there is no file /missing" in note for note in notes)
    assert loaded({"XDS_ADDRESS": "", "FAKE_CA": "true"}).notes == ()  # nobody to trust, nothing to tell


@pytest.mark.parametrize(
    ("environ", "files", "auth"),
    [
        ({}, {}, None),
        ({}, {TOKEN_FILE: "t"}, FromFile(TOKEN_FILE)),
        ({"AUTH_TOKEN": "/token"}, {"/token": "t"}, FromFile("/token")),
        ({"AUTH_TOKEN": "secret"}, {}, Literal("secret")),
        ({"AUTH_TOKEN": ""}, {TOKEN_FILE: "t"}, None),
    ],
)
def test_tokens(environ: dict[str, str], files: dict[str, str], auth: object) -> None:
    assert loaded(environ, files).control.auth == auth


@pytest.mark.parametrize("path", ["/no/token", "./token", "../token"])
def test_a_token_file_that_is_missing_is_told_without_its_text(path: str) -> None:
    notes = loaded({"AUTH_TOKEN": path}).notes

    assert any("AUTH_TOKEN looks like a path, but there is no such file" in note for note in notes)
    assert not any(path in note for note in notes)
    assert not any("AUTH_TOKEN" in note for note in loaded({"AUTH_TOKEN": "abc/def=="}).notes)
    assert not any("AUTH_TOKEN" in note for note in loaded({"AUTH_TOKEN": path}, {path: "t"}).notes)


def test_secrets_are_shown_nowhere() -> None:
    config = loaded({"AUTH_TOKEN": "tell-nobody", "LOCAL_XDS": "tell-nobody", "CA_ROOT_CA": "tell-nobody"})

    assert "tell-nobody" not in json.dumps(dump_config(config))
    assert "tell-nobody" not in repr(config).replace("notes=", "")[: repr(config).index("notes=")]


def test_the_crl_path_may_be_empty() -> None:
    assert loaded({"CRL_PATH": ""}).control.crl_path is None
    assert loaded({"CRL_PATH": "/crl.pem"}).control.crl_path == "/crl.pem"

"""Signing requests: what istiod reads of them, and what it would ignore is not there."""

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ztunnel_trio.certs import csr
from ztunnel_trio.model.identity import SpiffeId


def test_a_request_names_its_identity_and_nothing_else() -> None:
    """ztunnel src/tls/csr.rs, test_csr."""
    made = csr.make(SpiffeId("td", "ns1", "sa1"))

    request = x509.load_pem_x509_csr(made.csr_pem.encode())
    assert request.is_signature_valid
    assert list(request.subject) == []
    (extension,) = request.extensions
    assert extension.critical
    assert isinstance(extension.value, x509.SubjectAlternativeName)
    assert [name.value for name in extension.value] == ["spiffe://td/ns/ns1/sa/sa1"]
    assert "PRIVATE" not in repr(made)


def test_every_request_has_its_own_p256_key() -> None:
    keys = [csr.make(SpiffeId("td", "ns", "sa")).key_pem for _ in range(2)]

    assert keys[0] != keys[1]
    key = serialization.load_pem_private_key(keys[0], None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)

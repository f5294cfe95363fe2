"""Keys and certificate signing requests for workload identities (ztunnel src/tls/csr.rs)."""

from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ztunnel_trio.model.identity import SpiffeId


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """A request as the authority reads it and the key it is for, both PEM; the key is PKCS#8."""

    csr_pem: str
    key_pem: bytes = field(repr=False)


def make(identity: SpiffeId) -> SigningRequest:
    """Make a new P-256 key and ask for a certificate: empty subject, one critical URI name. Microseconds."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(names, critical=True)
        .sign(key, hashes.SHA256())
    )
    return SigningRequest(request.public_bytes(serialization.Encoding.PEM).decode(), key_pem(key))


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A key as unencrypted PKCS#8 PEM, the form OpenSSL and `model.certificate` take."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

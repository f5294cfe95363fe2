"""An authority of our own, for stand-alone trials without istiod (FAKE_CA). Nobody else trusts it.

Several proxies trust each other when they share the root's file: certificate and key in one PEM text, made
by the first to come, readable by its owner alone.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Self

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ztunnel_trio.certs.csr import key_pem
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.model.certificate import to_pem
from ztunnel_trio.model.identity import SpiffeId

LIFETIME: Final = timedelta(hours=24)
_BACKDATED: Final = timedelta(minutes=2)  # as istiod does, for clocks that differ
_ROOT_LIFETIME: Final = timedelta(days=3650)
_ORGANISATION: Final = "cluster.local"


@dataclass(frozen=True, slots=True)
class FakeCa:
    """A root and what it takes to sign with it; `sign` is what `SignedCertificates` wants."""

    root: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    now: Callable[[], datetime]
    lifetime: timedelta = LIFETIME

    @classmethod
    def open(cls, path: str | None, now: Callable[[], datetime], lifetime: timedelta = LIFETIME) -> Self:
        """Use the root of a file, which is made (mode 0600) where there is none; without a path, a root
        that nobody shares.

        Raises:
            ConfigError: the file cannot be read or written, or holds no root of this kind.
        """
        if path is None:
            return cls(*_load(_make_root(now()), "FAKE_CA"), now, lifetime)
        try:
            if not os.path.exists(path):
                _write_once(path, _make_root(now()))
            with open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            raise ConfigError(f"fake CA root {path}: {error.strerror}") from error
        return cls(*_load(content, path), now, lifetime)

    async def sign(self, identity: SpiffeId, csr_pem: str) -> Sequence[str]:
        """Sign for an identity the public key of a request, as istiod does."""
        await trio.lowlevel.checkpoint()
        request = x509.load_pem_x509_csr(csr_pem.encode())
        public_key = request.public_key()
        assert isinstance(public_key, ec.EllipticCurvePublicKey)
        now = self.now()
        leaf = (
            x509.CertificateBuilder(
                issuer_name=self.root.subject,
                subject_name=x509.Name([]),  # the root's own name would make it look self-signed to OpenSSL
                public_key=public_key,
                serial_number=x509.random_serial_number(),
                not_valid_before=now - _BACKDATED,
                not_valid_after=now + self.lifetime,
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))]),
                critical=True,  # RFC 5280 4.2.1.6, of an empty subject
            )
            .add_extension(_usage(is_authority=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
            .sign(self.key, hashes.SHA256())
        )
        return [_pem(leaf), _pem(self.root)]


def _make_root(now: datetime) -> bytes:
    """A new root: its certificate and key as one PEM text."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANISATION)])
    root = (
        x509.CertificateBuilder(
            issuer_name=name,
            subject_name=name,
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - _BACKDATED,
            not_valid_after=now + _ROOT_LIFETIME,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(is_authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(root).encode() + key_pem(key)


def _write_once(path: str, content: bytes) -> None:
    """Create a file whole, unless another process was faster."""
    descriptor, draft = tempfile.mkstemp(dir=os.path.dirname(path) or ".")  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        os.unlink(draft)


def _load(content: bytes, path: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        root = x509.load_pem_x509_certificate(content)
        key = serialization.load_pem_private_key(content, None)
    except ValueError as error:
        raise ConfigError(f"fake CA root {path}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"fake CA root {path}: not an elliptic curve key")
    return root, key


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=not is_authority,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return to_pem(certificate.public_bytes(serialization.Encoding.DER)).decode()

"""The lab's certificate authority: trustme's CA, whose key signs SPIFFE leaves through cryptography.

trustme makes roots, intermediates and server certificates, but cannot write URI names; a workload's
certificate looks as istiod's CA makes it: empty subject, critical SAN, both extended key usages, backdated by
two minutes (istio `security/pkg/pki/ca`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

BACKDATED_SECONDS: Final = 120.0  # istio: util.GenCertTemplateFromOptions, ClockSkewGracePeriod


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A certificate and its key, PEM; `chain_pem` is the leaf with the intermediates behind it."""

    certificate_pem: str
    chain_pem: str
    key_pem: str

    @property
    def serial(self) -> int:
        return x509.load_pem_x509_certificate(self.certificate_pem.encode()).serial_number


class Authority:
    """A root, or an intermediate below one. Several roots are several Authorities."""

    def __init__(self, organisation: str = "ztunnel-trio lab", *, parent: "Authority | None" = None) -> None:
        self._parent = parent
        self._ca: trustme.CA = (
            parent._ca.create_child_ca(key_type=trustme.KeyType.ECDSA)
            if parent
            else trustme.CA(organization_name=organisation, key_type=trustme.KeyType.ECDSA)
        )
        self._certificate = x509.load_pem_x509_certificate(self._ca.cert_pem.bytes())
        key = serialization.load_pem_private_key(self._ca.private_key_pem.bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key

    def intermediate(self) -> "Authority":
        """A CA certified by this one."""
        return Authority(parent=self)

    @property
    def root_pem(self) -> str:
        return self._parent.root_pem if self._parent else self._pem(self._certificate)

    @property
    def intermediates_pem(self) -> list[str]:
        """From this authority up to, and without, the root."""
        return [self._pem(self._certificate), *self._parent.intermediates_pem] if self._parent else []

    def sign(
        self,
        public_key: ec.EllipticCurvePublicKey,
        identities: Sequence[str],
        *,
        lifetime: float,
        backdated: float = BACKDATED_SECONDS,
    ) -> str:
        """A workload certificate for a key, PEM. A negative lifetime makes an expired one."""
        now = datetime.now(UTC)
        until = min(now + timedelta(seconds=lifetime), self._certificate.not_valid_after_utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, until) - timedelta(seconds=backdated))
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        if identities:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(i) for i in identities])
            builder = builder.add_extension(names, critical=True)
        return self._pem(builder.sign(self._key, hashes.SHA256()))

    def leaf(self, *identities: str, lifetime: float = 3600.0, backdated: float = BACKDATED_SECONDS) -> Leaf:
        """A workload certificate with a key of its own, for peers made by hand."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.sign(key.public_key(), identities, lifetime=lifetime, backdated=backdated)
        return Leaf(
            certificate_pem=certificate,
            chain_pem=certificate + "".join(self.intermediates_pem),
            key_pem=key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode(),
        )

    def server(
        self, *names: str, not_after: datetime | None = None, not_before: datetime | None = None
    ) -> Leaf:
        """A server certificate for DNS names and IP addresses, as istiod's."""
        issued = self._ca.issue_cert(
            *names, key_type=trustme.KeyType.ECDSA, not_after=not_after, not_before=not_before
        )
        chain = [blob.bytes().decode() for blob in issued.cert_chain_pems]
        return Leaf(
            certificate_pem=chain[0],
            chain_pem="".join([chain[0], *self.intermediates_pem]),
            key_pem=issued.private_key_pem.bytes().decode(),
        )

    def crl(self, serials: Sequence[int], *, lifetime: float = 86400.0) -> str:
        """A revocation list of this authority, PEM; a negative lifetime makes one past its next update."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - timedelta(days=2))
            .next_update(now + timedelta(seconds=lifetime))
            .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    @staticmethod
    def _pem(certificate: x509.Certificate) -> str:
        return certificate.public_bytes(serialization.Encoding.PEM).decode()


def uri_names(certificate_pem: str) -> list[str]:
    """The URI alternative names of a certificate."""
    certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _key_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_encipherment=True,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )

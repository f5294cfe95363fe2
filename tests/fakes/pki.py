"""A small certificate authority for tests: roots, intermediates, SPIFFE leaves, server leaves and CRLs.

trustme cannot write URI names, so leaves are signed here with `cryptography` alone.
"""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ztunnel_trio.model.identity import SpiffeId

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
FAR_AWAY = datetime(2049, 1, 1, tzinfo=UTC)


def new_key_pem() -> bytes:
    """A fresh P-256 key as PKCS#8 PEM."""
    return key_pem_of(ec.generate_private_key(ec.SECP256R1()))


def key_pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A key as unencrypted PKCS#8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@dataclass(frozen=True, slots=True)
class Authority:
    """One CA certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @classmethod
    def root(cls, organisation: str, *, until: datetime = FAR_AWAY) -> Self:
        """A self-signed root."""
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(_authority(organisation, key, _name(organisation), key, until=until), key)

    def intermediate(self, organisation: str, *, can_sign_crls: bool = True) -> "Authority":
        """A CA below this one."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _authority(
            organisation, key, self.certificate.subject, self.key, can_sign_crls=can_sign_crls
        )
        return Authority(certificate, key)

    def leaf(
        self, identity: SpiffeId, not_before: datetime, not_after: datetime, *, serial: int | None = None
    ) -> tuple[str, bytes]:
        """A workload certificate (PEM) and its key (PEM)."""
        key = ec.generate_private_key(ec.SECP256R1())
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
        certificate = self.sign(key.public_key(), san, not_before, not_after, critical=True, serial=serial)
        return certificate.public_bytes(serialization.Encoding.PEM).decode(), key_pem_of(key)

    def server(
        self, *names: str, not_before: datetime = LONG_AGO, not_after: datetime = FAR_AWAY
    ) -> tuple[str, bytes]:
        """A TLS server's certificate (PEM) for DNS names and IP addresses, and its key (PEM)."""
        key = ec.generate_private_key(ec.SECP256R1())
        san = x509.SubjectAlternativeName([_general(name) for name in names])
        certificate = self.sign(key.public_key(), san, not_before, not_after, critical=True)
        return certificate.public_bytes(serialization.Encoding.PEM).decode(), key_pem_of(key)

    def sign(
        self,
        public_key: ec.EllipticCurvePublicKey,
        san: x509.SubjectAlternativeName,
        not_before: datetime,
        not_after: datetime,
        *,
        critical: bool,
        serial: int | None = None,
    ) -> x509.Certificate:
        """Sign a leaf for both ends of TLS, as istiod does."""
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return (
            x509.CertificateBuilder(
                issuer_name=self.certificate.subject,
                subject_name=x509.Name([]),
                public_key=public_key,
                serial_number=x509.random_serial_number() if serial is None else serial,
                not_valid_before=not_before,
                not_valid_after=not_after,
            )
            .add_extension(san, critical=critical)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
            .sign(self.key, hashes.SHA256())
        )

    def revocations(self, *serials: int, next_update: datetime = FAR_AWAY) -> str:
        """A CRL (PEM) of this CA listing serial numbers."""
        builder = x509.CertificateRevocationListBuilder(
            issuer_name=self.certificate.subject, last_update=LONG_AGO, next_update=next_update
        )
        for serial in serials:
            entry = x509.RevokedCertificateBuilder(serial, LONG_AGO + timedelta(days=1)).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(organisation: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation)])


def _authority(
    organisation: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    can_sign_crls: bool = True,
    until: datetime = FAR_AWAY,
) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=can_sign_crls,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder(
            issuer_name=issuer,
            subject_name=_name(organisation),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=LONG_AGO,
            not_valid_after=until,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
        .sign(issuer_key, hashes.SHA256())
    )

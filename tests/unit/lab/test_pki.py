"""Certificates as istiod's CA makes them, and those it never would."""

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from ztunnel_trio.lab.pki import Authority, uri_names

WEB = "spiffe://cluster.local/ns/default/sa/web"


def loaded(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def test_a_leaf_names_its_identity_critically_and_nothing_else() -> None:
    certificate = loaded(Authority().leaf(WEB).certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value

    assert certificate.subject == x509.Name([])
    assert names.critical
    assert uri_names(loaded_pem(certificate)) == [WEB]
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


def loaded_pem(certificate: x509.Certificate) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM).decode()


def test_a_leaf_is_backdated_by_two_minutes_and_lives_as_long_as_asked() -> None:
    certificate = loaded(Authority().leaf(WEB, lifetime=600).certificate_pem)
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc

    assert timedelta(seconds=719) <= life <= timedelta(seconds=721)


def test_an_expired_leaf_can_be_had() -> None:
    certificate = loaded(Authority().leaf(WEB, lifetime=-60).certificate_pem)

    assert certificate.not_valid_after_utc < datetime.now(UTC)
    assert certificate.not_valid_before_utc < certificate.not_valid_after_utc


def test_an_intermediate_stands_between_leaf_and_root() -> None:
    root = Authority()
    below = root.intermediate()
    leaf = below.leaf(WEB)
    chain = x509.load_pem_x509_certificates(leaf.chain_pem.encode())

    assert below.root_pem == root.root_pem
    assert len(chain) == 2
    chain[0].verify_directly_issued_by(chain[1])
    chain[1].verify_directly_issued_by(loaded(root.root_pem))


def test_two_roots_do_not_know_each_other() -> None:
    one, other = Authority(), Authority()
    key = ec.generate_private_key(ec.SECP256R1())

    assert one.root_pem != other.root_pem
    loaded(one.sign(key.public_key(), [WEB], lifetime=60)).verify_directly_issued_by(loaded(one.root_pem))


def test_a_server_certificate_has_its_names() -> None:
    certificate = loaded(Authority().server("istiod.istio-system.svc", "10.88.0.1").certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    assert names.get_values_for_type(x509.DNSName) == ["istiod.istio-system.svc"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.88.0.1"]


def test_a_revocation_list_holds_the_serials() -> None:
    authority = Authority()
    leaf = authority.leaf(WEB)
    crl = x509.load_pem_x509_crl(authority.crl([leaf.serial]).encode())

    assert [entry.serial_number for entry in crl] == [leaf.serial]
    assert crl.is_signature_valid(loaded(authority.root_pem).public_key())  # type: ignore[arg-type]
    assert uri_names(authority.root_pem) == []

"""TLS on the descriptor, both roles against each other over a socket pair."""

import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from trio.testing import wait_all_tasks_blocked

from tests.fakes.cancellation import cancelled_everywhere_now, open_descriptors
from tests.fakes.pki import FAR_AWAY, LONG_AGO, Authority, key_pem_of
from tests.fakes.trio_test import trio_test
from ztunnel_trio.model.certificate import WorkloadCertificate
from ztunnel_trio.model.ending import CertificateInvalid, Ending, Invalid, TlsRefused
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.net.tls.contexts import TlsContexts
from ztunnel_trio.net.tls.failures import TlsFailed, TlsMisconfigured, tls_ending
from ztunnel_trio.net.tls.handshake import DRAIN_SECONDS, Secured, accept_tls, connect_tls
from ztunnel_trio.net.tls.peer import TlsPeer, Verdict
from ztunnel_trio.observe.words import ending_text

CLIENT = SpiffeId("cluster.local", "default", "curl")
SERVER = SpiffeId("cluster.local", "default", "echo")
OTHER = SpiffeId("cluster.local", "default", "other")
FOREIGN = SpiffeId("elsewhere.example", "default", "curl")

BOTH_USAGES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def certificate(
    authority: Authority,
    *names: SpiffeId | str,
    roots: Sequence[bytes] | None = None,
    intermediates: Sequence[Authority] = (),
    usages: Sequence[x509.ObjectIdentifier] = BOTH_USAGES,
    not_before: datetime = LONG_AGO,
    not_after: datetime = FAR_AWAY,
    key_identifiers: bool = True,
) -> WorkloadCertificate:
    key = ec.generate_private_key(ec.SECP256R1())
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(name)) for name in names])
    builder = (
        x509.CertificateBuilder(
            issuer_name=authority.certificate.subject,
            subject_name=x509.Name([]),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=not_before,
            not_valid_after=not_after,
        )
        .add_extension(san, critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    if key_identifiers:
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
        builder = builder.add_extension(issuer, critical=False)
    leaf = builder.sign(authority.key, hashes.SHA256())
    identity = next(name for name in names if isinstance(name, SpiffeId))
    return WorkloadCertificate(
        identity=identity,
        leaf_der=leaf.public_bytes(serialization.Encoding.DER),
        intermediates_der=tuple(each.der for each in intermediates),
        roots_der=(authority.der,) if roots is None else tuple(roots),
        key_pem=key_pem_of(key),
        not_before=not_before,
        not_after=not_after,
        serial=leaf.serial_number,
    )


def root_without_key_identifiers(organisation: str) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation)])
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), LONG_AGO, FAR_AWAY
    ).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return Authority(builder.sign(key, hashes.SHA256()), key)


@dataclass
class Outcome:
    """What each side of a handshake came to, and what the client could read afterwards."""

    server: TlsPeer | str | None = None
    client: TlsPeer | str | None = None
    first_read: bytes | str | None = None
    alpn: list[str | None] = field(default_factory=list)
    versions: list[str | None] = field(default_factory=list)


async def read(tls: ssl.SSLSocket) -> bytes | str:
    while True:
        try:
            return tls.recv(100)
        except ssl.SSLWantReadError:
            await trio.lowlevel.wait_readable(tls)
        except ssl.SSLError as error:
            return ending_text(tls_ending(error))
        except ConnectionResetError:
            return "reset"


def text_of(error: TlsFailed | OSError) -> str:
    return ending_text(error.ending) if isinstance(error, TlsFailed) else str(error)


async def meet(
    server: WorkloadCertificate,
    client: WorkloadCertificate,
    expected: Sequence[SpiffeId] = (SERVER,),
    *,
    server_contexts: TlsContexts | None = None,
    client_contexts: TlsContexts | None = None,
    server_verdict: Verdict | None = None,
    client_verdict: Verdict | None = None,
) -> Outcome:
    """Let two sides meet; the server sends one word after its handshake."""
    outcome = Outcome()
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)

    def note(secured: Secured) -> TlsPeer:
        outcome.alpn.append(secured.tls.selected_alpn_protocol())
        outcome.versions.append(secured.tls.version())
        return secured.peer

    async def accept() -> None:
        try:
            secured = await accept_tls(
                left, server, contexts=server_contexts or TlsContexts(), verdict=server_verdict
            )
        except (TlsFailed, OSError) as error:  # the other side may be gone already
            outcome.server = text_of(error)
            return
        with secured.tls:
            outcome.server = note(secured)
            with contextlib.suppress(OSError):  # the client may have refused us
                secured.tls.send(b"hello")

    async def dial() -> None:
        try:
            secured = await connect_tls(
                right, client, expected, contexts=client_contexts or TlsContexts(), verdict=client_verdict
            )
        except (TlsFailed, OSError) as error:  # the other side may be gone already
            outcome.client = text_of(error)
            return
        with secured.tls:
            outcome.client = note(secured)
            outcome.first_read = await read(secured.tls)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        nursery.start_soon(dial)
    assert left.fileno() == right.fileno() == -1
    return outcome


def identities(found: TlsPeer | str | None) -> tuple[SpiffeId, ...]:
    assert isinstance(found, TlsPeer), found
    return found.identities


ROOT = Authority.root("cluster.local")
STRANGER = Authority.root("stranger")
SERVER_CERTIFICATE = certificate(ROOT, SERVER)
CLIENT_CERTIFICATE = certificate(ROOT, CLIENT)


@trio_test
async def test_two_workloads_of_one_mesh_prove_their_identities_to_each_other() -> None:
    outcome = await meet(SERVER_CERTIFICATE, CLIENT_CERTIFICATE)

    assert identities(outcome.server) == (CLIENT,)
    assert identities(outcome.client) == (SERVER,)
    assert outcome.first_read == b"hello"
    assert outcome.alpn == ["h2", "h2"]
    assert outcome.versions == ["TLSv1.3", "TLSv1.3"]


@trio_test
async def test_the_verified_chain_runs_from_leaf_to_anchor() -> None:
    intermediate = ROOT.intermediate("intermediary")
    server = certificate(intermediate, SERVER, roots=[ROOT.der], intermediates=[intermediate])

    outcome = await meet(server, CLIENT_CERTIFICATE)

    assert isinstance(outcome.client, TlsPeer)
    assert outcome.client.leaf_der == server.leaf_der
    assert outcome.client.chain_der == (server.leaf_der, intermediate.der, ROOT.der)


@trio_test
async def test_an_intermediate_may_be_the_trust_anchor() -> None:
    intermediate = ROOT.intermediate("intermediary")
    client = certificate(intermediate, CLIENT)

    outcome = await meet(certificate(intermediate, SERVER), client)

    assert identities(outcome.client) == (SERVER,)


@trio_test
async def test_any_identity_of_the_server_may_match_any_expected_one() -> None:
    gateway = certificate(ROOT, OTHER, "https://not.spiffe", SERVER)

    outcome = await meet(gateway, CLIENT_CERTIFICATE, (FOREIGN, SERVER))

    assert identities(outcome.client) == (OTHER, SERVER)


@trio_test
async def test_a_server_that_is_not_whom_we_dialled_is_refused_before_any_byte() -> None:
    outcome = await meet(SERVER_CERTIFICATE, CLIENT_CERTIFICATE, (OTHER, FOREIGN))

    assert outcome.client == (
        "invalid peer certificate: Other(OtherError(identity verification error: "
        f"peer did not present the expected SAN ({OTHER},{FOREIGN}), got {SERVER}))"
    )


@trio_test
async def test_expecting_nobody_refuses_everybody() -> None:
    outcome = await meet(SERVER_CERTIFICATE, CLIENT_CERTIFICATE, ())

    assert isinstance(outcome.client, str)
    assert f"peer did not present the expected SAN (), got {SERVER}" in outcome.client


@trio_test
async def test_a_client_of_another_trust_domain_is_refused() -> None:
    outcome = await meet(SERVER_CERTIFICATE, certificate(ROOT, FOREIGN))

    assert outcome.server == (
        "invalid peer certificate: Other(OtherError(identity verification error: "
        f"peer did not present the expected trustdomain (cluster.local), got {FOREIGN}))"
    )
    assert identities(outcome.client) == (SERVER,), "with TLS 1.3 the client learns of it later"
    assert outcome.first_read in (b"", "reset")


@trio_test
async def test_unknown_issuers_are_refused_on_both_sides() -> None:
    by_client = await meet(certificate(STRANGER, SERVER, roots=[ROOT.der]), CLIENT_CERTIFICATE)
    by_server = await meet(SERVER_CERTIFICATE, certificate(STRANGER, CLIENT, roots=[ROOT.der]))

    assert by_client.client == "invalid peer certificate: UnknownIssuer"
    assert by_client.server == "received fatal alert: UnknownCA"
    assert by_server.server == "invalid peer certificate: UnknownIssuer"
    assert by_server.first_read == "received fatal alert: UnknownCA"


@pytest.mark.parametrize(
    ("days_before", "days_after", "text"),
    [(-20, -10, "Expired"), (10, 20, "NotValidYet")],
)
def test_the_peers_lifetime_is_checked(days_before: int, days_after: int, text: str) -> None:
    now = datetime.now(UTC)
    server = certificate(
        ROOT,
        SERVER,
        not_before=now + timedelta(days=days_before),
        not_after=now + timedelta(days=days_after),
    )

    outcome = trio.run(meet, server, CLIENT_CERTIFICATE)

    assert outcome.client == f"invalid peer certificate: {text}"


@trio_test
async def test_the_extended_key_usage_must_allow_the_role() -> None:
    server_only, client_only = BOTH_USAGES[:1], BOTH_USAGES[1:]
    by_client = await meet(certificate(ROOT, SERVER, usages=client_only), CLIENT_CERTIFICATE)
    by_server = await meet(SERVER_CERTIFICATE, certificate(ROOT, CLIENT, usages=server_only))

    assert by_client.client == "invalid peer certificate: InvalidPurpose"
    assert by_server.server == "invalid peer certificate: InvalidPurpose"


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("tls12", [False, True])
def test_multi_root(swapped: bool, tls12: bool) -> None:
    """Two roots of one name, no key identifiers: a leaf of the first serves, one of the second dials."""
    first, second = (
        root_without_key_identifiers("cluster.local"),
        root_without_key_identifiers("cluster.local"),
    )
    bundle = [second.der, first.der] if swapped else [first.der, second.der]
    server = certificate(first, SERVER, roots=[STRANGER.der, *bundle], key_identifiers=False)
    client = certificate(second, CLIENT, roots=[*bundle, STRANGER.der], key_identifiers=False)

    async def main() -> Outcome:
        contexts = TlsContexts(tls12=tls12)
        if tls12:
            contexts.server_context(server).maximum_version = ssl.TLSVersion.TLSv1_2
        return await meet(server, client, server_contexts=contexts, client_contexts=TlsContexts(tls12=tls12))

    outcome = trio.run(main)

    assert identities(outcome.server) == (CLIENT,)
    assert identities(outcome.client) == (SERVER,)
    assert outcome.first_read == b"hello"
    assert isinstance(outcome.server, TlsPeer)
    assert outcome.server.chain_der[-1] == second.der


@trio_test
async def test_namesake_roots_open_no_door_to_strangers() -> None:
    first, second, third = (root_without_key_identifiers("cluster.local") for _ in range(3))
    server = certificate(first, SERVER, roots=[first.der, second.der], key_identifiers=False)
    client = certificate(third, CLIENT, roots=[first.der, second.der], key_identifiers=False)

    outcome = await meet(server, client)

    assert isinstance(outcome.server, str)
    assert outcome.server.startswith("invalid peer certificate: ")


@trio_test
async def test_the_verdict_refuses_with_its_own_text_on_either_side() -> None:
    def revoked(peer: TlsPeer) -> Ending | None:
        return TlsRefused(CertificateInvalid(Invalid.REVOKED)) if peer.identities else None

    by_client = await meet(SERVER_CERTIFICATE, CLIENT_CERTIFICATE, client_verdict=revoked)
    by_server = await meet(SERVER_CERTIFICATE, CLIENT_CERTIFICATE, server_verdict=revoked)

    assert by_client.client == "invalid peer certificate: Revoked"
    assert by_server.server == "invalid peer certificate: Revoked"


@trio_test
async def test_tls_1_2_is_spoken_only_where_it_is_enabled() -> None:
    def old_client() -> TlsContexts:
        contexts = TlsContexts(tls12=True)
        contexts.client_context(CLIENT_CERTIFICATE).maximum_version = ssl.TLSVersion.TLSv1_2
        return contexts

    refused = await meet(SERVER_CERTIFICATE, CLIENT_CERTIFICATE, client_contexts=old_client())
    accepted = await meet(
        SERVER_CERTIFICATE,
        CLIENT_CERTIFICATE,
        client_contexts=old_client(),
        server_contexts=TlsContexts(tls12=True),
    )

    assert refused.client == "received fatal alert: ProtocolVersion"
    assert isinstance(refused.server, str)
    assert accepted.versions == ["TLSv1.2", "TLSv1.2"]


async def refusal_of(send: bytes | Callable[[socket.socket], None]) -> str:
    """What the accepting side says to a peer that sends this and hangs up."""
    left, right = socket.socketpair()
    left.setblocking(False)
    with right:
        if isinstance(send, bytes):
            right.send(send)
            right.shutdown(socket.SHUT_WR)
        else:
            send(right)
        with pytest.raises(TlsFailed) as caught:
            await accept_tls(left, SERVER_CERTIFICATE, contexts=TlsContexts())
        assert left.fileno() == -1
    return ending_text(caught.value.ending)


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (b"", "tls handshake eof"),
        (b"\x16\x03", "tls handshake eof"),
        (b"GET / HTTP/1.1\r\n\r\n", "received corrupt message of type InvalidContentType"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "received corrupt message of type InvalidContentType"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "received corrupt message of type InvalidContentType"),
    ],
)
def test_who_speaks_no_tls_is_told_apart(sent: bytes, text: str) -> None:
    assert trio.run(refusal_of, sent) == text


@pytest.mark.parametrize("sent", [bytes(100), bytes(range(256)), b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"])
def test_garbage_is_a_clear_failure(sent: bytes) -> None:
    assert trio.run(refusal_of, sent)


@trio_test
async def test_a_client_without_a_certificate_is_refused() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    left, right = socket.socketpair()
    left.setblocking(False)

    def dial() -> None:
        with context.wrap_socket(right) as tls, pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            tls.recv(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, dial)
        with pytest.raises(TlsFailed) as caught:
            await accept_tls(left, SERVER_CERTIFICATE, contexts=TlsContexts())
    assert ending_text(caught.value.ending) == "peer sent no certificates"


@trio_test
async def test_a_client_that_offers_other_protocols_only_is_refused_at_once() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    left, right = socket.socketpair()
    left.setblocking(False)

    def dial() -> None:
        with right, pytest.raises(ssl.SSLError, match="no application protocol"):
            context.wrap_socket(right)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, dial)
        with pytest.raises(TlsFailed) as caught:
            await accept_tls(left, SERVER_CERTIFICATE, contexts=TlsContexts())
    assert ending_text(caught.value.ending) == "peer doesn't support any known protocol"


@trio_test
async def test_a_client_that_offers_no_alpn_is_accepted_and_gets_no_ticket() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    contexts = TlsContexts()
    left, right = socket.socketpair()
    left.setblocking(False)
    borrowed = contexts.client_context(CLIENT_CERTIFICATE)
    borrowed.set_alpn_protocols([])
    sessions: list[bool] = []

    def dial() -> None:
        with borrowed.wrap_socket(right) as tls:
            assert tls.recv(5) == b"hello"
            assert tls.session is not None
            sessions.append(tls.session.has_ticket)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, dial)
        tls, peer = await accept_tls(left, SERVER_CERTIFICATE, contexts=contexts)
        assert peer.identities == (CLIENT,)
        tls.send(b"hello")
    tls.close()
    assert sessions == [False]


def test_contexts_are_made_once_a_certificate_and_go_with_it() -> None:
    contexts = TlsContexts()
    first = contexts.server_context(SERVER_CERTIFICATE)
    renewed = certificate(ROOT, SERVER)

    assert contexts.server_context(SERVER_CERTIFICATE) is first
    assert contexts.server_context(renewed) is not first
    assert contexts.server_context(SERVER_CERTIFICATE) is first, "two pods of one identity"
    assert len(contexts._contexts) == 2
    del renewed
    assert len(contexts._contexts) == 1


FRIEND = Authority.root("friend")
GUEST = SpiffeId("friend", "default", "guest")


def letting_in(own: WorkloadCertificate, **foreign: Authority) -> WorkloadCertificate:
    """A certificate whose holder lets workloads of other trust domains in."""
    return replace(own, foreign_roots_der=tuple((name, (one.der,)) for name, one in foreign.items()))


@trio_test
async def test_a_foreign_trust_domain_is_let_in_where_it_is_named_and_by_its_own_roots() -> None:
    guest = letting_in(certificate(FRIEND, GUEST), **{"cluster.local": ROOT})
    refused = await meet(SERVER_CERTIFICATE, guest)
    assert isinstance(refused.server, str)

    let_in = await meet(letting_in(SERVER_CERTIFICATE, friend=FRIEND), guest)

    assert identities(let_in.server) == (GUEST,)
    assert identities(let_in.client) == (SERVER,)


@trio_test
async def test_one_trust_domain_does_not_vouch_for_the_names_of_another() -> None:
    host = letting_in(SERVER_CERTIFICATE, friend=FRIEND)
    liar = letting_in(certificate(FRIEND, CLIENT), **{"cluster.local": ROOT})  # our name under their root

    outcome = await meet(host, liar)

    assert isinstance(outcome.server, str)
    assert "identity verification error" in outcome.server


def test_a_key_that_does_not_fit_is_a_misconfiguration() -> None:
    wrong = WorkloadCertificate(
        identity=SERVER,
        leaf_der=SERVER_CERTIFICATE.leaf_der,
        intermediates_der=(),
        roots_der=(ROOT.der,),
        key_pem=CLIENT_CERTIFICATE.key_pem,
        not_before=LONG_AGO,
        not_after=FAR_AWAY,
        serial=1,
    )

    with pytest.raises(TlsMisconfigured, match="certificate: "):
        TlsContexts().server_context(wrong)


def test_a_certificate_without_roots_is_a_misconfiguration() -> None:
    with pytest.raises(TlsMisconfigured, match="certificate: "):
        TlsContexts().client_context(certificate(ROOT, CLIENT, roots=[]))


def test_a_handshake_cancelled_at_any_step_leaves_nothing_open() -> None:
    async def scenario() -> None:
        await meet(SERVER_CERTIFICATE, CLIENT_CERTIFICATE)

    assert cancelled_everywhere_now(scenario) > 5


@trio_test
async def test_a_silent_peer_holds_nobody_up() -> None:
    contexts = TlsContexts(steps_at_once=1)
    silent, ours = socket.socketpair()
    ours.setblocking(False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: accept_tls(ours, SERVER_CERTIFICATE, contexts=contexts))
        await wait_all_tasks_blocked()

        outcome = await meet(SERVER_CERTIFICATE, CLIENT_CERTIFICATE, server_contexts=contexts)

        assert outcome.first_read == b"hello"
        nursery.cancel_scope.cancel()
    silent.close()


def verification_error(code: int, message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "verify failed")
    error.verify_code, error.verify_message, error.reason = code, message, "CERTIFICATE_VERIFY_FAILED"
    return error


def ssl_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, "failed")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (verification_error(23, "revoked"), "invalid peer certificate: Revoked"),
        (verification_error(18, "self-signed"), "invalid peer certificate: UnknownIssuer"),
        (
            verification_error(34, "unhandled critical extension"),
            "invalid peer certificate: Other(OtherError(unhandled critical extension))",
        ),
        (ssl_error("SSLV3_ALERT_CERTIFICATE_UNKNOWN"), "received fatal alert: CertificateUnknown"),
        (ssl_error("SSLV3_ALERT_CERTIFICATE_EXPIRED"), "received fatal alert: CertificateExpired"),
        (ssl_error("TLSV1_ALERT_UNKNOWN_CA"), "received fatal alert: UnknownCA"),
        (ssl_error("TLSV13_ALERT_CERTIFICATE_REQUIRED"), "received fatal alert: CertificateRequired"),
        (ssl_error("TLSV1_ALERT_NO_APPLICATION_PROTOCOL"), "received fatal alert: NoApplicationProtocol"),
        (ssl_error("NO_SHARED_CIPHER"), "tls: no shared cipher"),
        (ssl_error(""), "tls: failed"),
        (ssl.SSLZeroReturnError(6, "closed"), "tls handshake eof"),
    ],
)
def test_failures_are_told_in_the_words_operators_know(error: ssl.SSLError, text: str) -> None:
    assert ending_text(tls_ending(error)) == text


@trio_test
async def test_a_name_that_is_no_text_is_refused() -> None:
    good = certificate(ROOT, SERVER, "spiffe://cluster.local/ns/x/sa/ABCD")
    leaf = x509.load_der_x509_certificate(good.leaf_der)
    tampered = leaf.tbs_certificate_bytes.replace(b"ABCD", b"\xff\xfe\xfd\xfc")
    signature = ROOT.key.sign(tampered, ec.ECDSA(hashes.SHA256()))
    bits = b"\x00" + signature
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
    content = tampered + algorithm + b"\x03" + bytes([len(bits)]) + bits
    assert 256 <= len(content) < 65536
    wrong = replace(good, leaf_der=b"\x30\x82" + len(content).to_bytes(2, "big") + content)

    outcome = await meet(wrong, CLIENT_CERTIFICATE)

    assert outcome.client == "invalid peer certificate: BadEncoding"


def test_roots_that_cannot_be_read_are_a_misconfiguration() -> None:
    with pytest.raises(TlsMisconfigured, match="certificate: "):
        TlsContexts().server_context(certificate(ROOT, SERVER, roots=[b"\x30\x00"]))


def test_the_key_is_in_no_directory_and_no_descriptor_stays() -> None:
    before = open_descriptors()
    TlsContexts().server_context(certificate(ROOT, SERVER))
    assert open_descriptors() == before


# -- what a refused peer is told


def tcp() -> tuple[socket.socket, socket.socket]:
    """A listener's end, non-blocking, and a client's: a socket pair of the system knows no reset."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    server.setblocking(False)
    return server, client


def client_context(leaf: WorkloadCertificate | None) -> ssl.SSLContext:
    """A client that shows this certificate, or none, and trusts whomever it meets."""
    if leaf is not None:
        context = TlsContexts().client_context(leaf)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


EXPIRED = certificate(ROOT, CLIENT, not_before=LONG_AGO, not_after=datetime.now(UTC) - timedelta(days=1))
FIRST_FRAMES = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(60_000)
TOLD = b"GOAWAY: "


def say(ending: Ending) -> bytes:
    return TOLD + ending_text(ending).encode()


@pytest.mark.parametrize("has_spoken", [False, True], ids=["waits", "has sent its first frames"])
@pytest.mark.parametrize(
    ("leaf", "told"),
    [
        (None, "TLSV13_ALERT_CERTIFICATE_REQUIRED"),
        (EXPIRED, "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
        (certificate(STRANGER, CLIENT), "TLSV1_ALERT_UNKNOWN_CA"),
        (certificate(ROOT, FOREIGN), "peer did not present the expected trustdomain"),
    ],
    ids=["no certificate", "expired", "unknown CA", "other trust domain"],
)
def test_a_refused_client_is_told_why_twelve_of_twelve_times(
    leaf: WorkloadCertificate | None, told: str, has_spoken: bool
) -> None:
    contexts, context = TlsContexts(), client_context(leaf)

    def dial(sock: socket.socket) -> str:
        with context.wrap_socket(sock) as tls:
            tls.settimeout(5)
            try:
                if has_spoken:
                    tls.sendall(FIRST_FRAMES)
                return tls.recv(1000).decode()
            except ssl.SSLError as error:
                return error.reason or ""

    async def once() -> str:
        server, client = tcp()
        found: list[str] = []

        async def run() -> None:
            found.append(await trio.to_thread.run_sync(dial, client))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            with pytest.raises(TlsFailed):
                await accept_tls(server, SERVER_CERTIFICATE, contexts=contexts, farewell=say)
        return found[0]

    async def main() -> None:
        for _ in range(12):
            assert told in await once()

    trio.run(main)


@trio_test
async def test_a_server_that_is_somebody_else_is_told_by_the_client() -> None:
    left, right = tcp()
    right.setblocking(False)
    heard: list[bytes | str] = []

    async def accept() -> None:
        secured = await accept_tls(left, SERVER_CERTIFICATE, contexts=TlsContexts())
        with secured.tls:
            heard.append(await read(secured.tls))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        with pytest.raises(TlsFailed):
            await connect_tls(right, CLIENT_CERTIFICATE, [OTHER], contexts=TlsContexts(), farewell=say)
    (said,) = heard
    assert isinstance(said, bytes)
    assert said.startswith(TOLD + b"invalid peer certificate")


@trio_test(autojump=True)
async def test_a_refused_peer_that_stays_is_let_go_after_a_second() -> None:
    server, client = tcp()
    with client:
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        began = trio.current_time()
        with pytest.raises(TlsFailed):
            await accept_tls(server, SERVER_CERTIFICATE, contexts=TlsContexts())
        assert trio.current_time() - began == pytest.approx(DRAIN_SECONDS)


@pytest.mark.parametrize("cut", [1, 5, 60, 100])
def test_a_hello_in_two_segments_is_looked_into(cut: int) -> None:
    context = client_context(CLIENT_CERTIFICATE)
    context.set_alpn_protocols(["http/1.1"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    hello = outgoing.read()

    async def main() -> None:
        server, client = tcp()
        with client:
            client.send(hello[:cut])
            async with trio.open_nursery() as nursery:

                async def rest() -> None:
                    await wait_all_tasks_blocked()
                    client.send(hello[cut:])
                    client.shutdown(socket.SHUT_WR)

                nursery.start_soon(rest)
                with pytest.raises(TlsFailed) as caught:
                    await accept_tls(server, SERVER_CERTIFICATE, contexts=TlsContexts())
        assert ending_text(caught.value.ending) == "peer doesn't support any known protocol"

    trio.run(main)

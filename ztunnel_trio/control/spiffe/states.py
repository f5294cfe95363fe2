"""Messages of SPIFFE's interfaces as values. Their bytes are in no error's text: they hold keys."""

from collections.abc import Iterable, Mapping
from typing import Final, Protocol, TypeVar

import betterproto2

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.svid import Svid, SvidState, split_der, trust_domain
from ztunnel_trio.pb.messages.spire.api.agent.delegatedidentity.v1 import X509SvidWithKey
from ztunnel_trio.pb.messages.spire.api.types import Spiffeid
from ztunnel_trio.wire.protobuf_encoding import TEXT, Schema, check_encoding

_MAP: Final[Schema] = {1: TEXT, 2: TEXT}
WORKLOAD_STATE: Final[Schema] = {1: {1: TEXT, 2: TEXT, 3: TEXT, 4: TEXT, 5: TEXT}, 2: TEXT, 3: _MAP}
"""X509SVIDResponse of the Workload API, SubscribeToX509SVIDResponse of the Broker API."""
DELEGATED_SVIDS: Final[Schema] = {1: {1: {1: TEXT, 2: {1: TEXT, 2: TEXT}, 4: TEXT}, 2: TEXT}, 2: TEXT}
DELEGATED_BUNDLES: Final[Schema] = {1: _MAP}

MessageT = TypeVar("MessageT", bound=betterproto2.Message)


class WireSvid(Protocol):
    """An SVID of the Workload API or of the Broker API: the fields are the same."""

    spiffe_id: str
    x509_svid: bytes
    x509_svid_key: bytes
    bundle: bytes


def read(message: type[MessageT], data: bytes, schema: Schema) -> MessageT:
    """Decode a message whose fields are those of the schema.

    Raises:
        PeerBrokeProtocol: it cannot be; the text names the kind of message only.
    """
    try:
        check_encoding(data, schema)
        return message.parse(data)
    except (ValueError, PeerBrokeProtocol):  # their texts may quote the bytes
        raise PeerBrokeProtocol(f"{message.__name__} cannot be decoded") from None


def bundles_of(found: Mapping[str, bytes]) -> Mapping[str, tuple[bytes, ...]]:
    """Bundles by trust domain, whose names come with or without scheme.

    Raises:
        PeerBrokeProtocol: one of them is no row of certificates.
    """
    return {trust_domain(name): split_der(data) for name, data in found.items()}


def state_of(svids: Iterable[WireSvid], federated: Mapping[str, bytes], crls: Iterable[bytes]) -> SvidState:
    """A state of the Workload API or the Broker API.

    Raises:
        PeerBrokeProtocol: a chain or bundle is no row of certificates.
    """
    return SvidState(
        tuple(
            Svid(each.spiffe_id, split_der(each.x509_svid), each.x509_svid_key, split_der(each.bundle))
            for each in svids
        ),
        bundles_of(federated),
        tuple(crls),
    )


def delegated_svids(found: Iterable[X509SvidWithKey]) -> tuple[Svid, ...]:
    """The SVIDs of a message of the Delegated Identity API; one without certificate or id is nobody's."""
    return tuple(
        Svid(_text(svid.id), tuple(svid.cert_chain), each.x509_svid_key)
        for each in found
        if (svid := each.x509_svid) is not None and svid.id is not None
    )


def _text(name: Spiffeid | None) -> str:
    return "" if name is None else f"spiffe://{name.trust_domain}{name.path}"

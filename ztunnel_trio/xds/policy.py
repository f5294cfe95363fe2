"""Authorization policies of the discovery stream as entries of the mesh."""

from collections.abc import Iterable
from typing import Final

from google.protobuf.message import DecodeError

from ztunnel_trio.mesh.entries import PolicyEntry
from ztunnel_trio.model.policy import (
    Action,
    Authorization,
    Clause,
    Exact,
    IPNetwork,
    Match,
    PolicyScope,
    Prefix,
    Presence,
    Rule,
    ServiceAccountMatch,
    StringMatch,
    Suffix,
)
from ztunnel_trio.pb import authorization_pb2
from ztunnel_trio.wire.rejection import RejectedResource
from ztunnel_trio.xds.fields import FieldRefused, cidr_of, known, undecodable


def read_policy(name: str, payload: bytes) -> PolicyEntry | RejectedResource:
    """Check one `Authorization` resource; it is kept under the resource name."""
    try:
        message = authorization_pb2.Authorization.FromString(payload)
        return PolicyEntry(name, _authorization(message))
    except DecodeError as error:
        return undecodable(name, error)
    except FieldRefused as refused:
        return refused.of(name)


_POLICY_SCOPES: Final = {0: PolicyScope.GLOBAL, 1: PolicyScope.NAMESPACE, 2: PolicyScope.WORKLOAD_SELECTOR}
_ACTIONS: Final = {0: Action.ALLOW, 1: Action.DENY}


def _authorization(message: authorization_pb2.Authorization) -> Authorization:
    return Authorization(
        name=message.name,
        namespace=message.namespace,
        scope=known("scope", _POLICY_SCOPES, message.scope),
        action=known("action", _ACTIONS, message.action),
        rules=tuple([_rule(rule) for rule in message.rules]),
        dry_run=message.dry_run,
    )


def _rule(message: authorization_pb2.Rule) -> Rule:
    return tuple([_clause(clause) for clause in message.clauses])


def _clause(message: authorization_pb2.Clause) -> Clause:
    return tuple([_match(match) for match in message.matches])


def _match(message: authorization_pb2.Match) -> Match:
    namespaces = _strings(message.namespaces)
    principals = _strings(message.principals)
    source_ips = _networks(message.source_ips)
    destination_ips = _networks(message.destination_ips)
    return Match(
        namespaces=namespaces,
        not_namespaces=_strings(message.not_namespaces),
        principals=principals,
        not_principals=_strings(message.not_principals),
        service_accounts=_accounts(message.service_accounts),
        not_service_accounts=_accounts(message.not_service_accounts),
        source_ips=source_ips,
        not_source_ips=_networks(message.not_source_ips),
        destination_ips=destination_ips,
        not_destination_ips=_networks(message.not_destination_ips),
        destination_ports=tuple([port & 0xFFFF for port in message.destination_ports]),
        not_destination_ports=tuple([port & 0xFFFF for port in message.not_destination_ports]),
        impossible=(not namespaces and len(message.namespaces) > 0)
        or (not principals and len(message.principals) > 0)
        or (not source_ips and len(message.source_ips) > 0)
        or (not destination_ips and len(message.destination_ips) > 0),
    )


def _strings(messages: Iterable[authorization_pb2.StringMatch]) -> tuple[StringMatch, ...]:
    """The usable entries: those that say what they match."""
    return tuple([match for message in messages if (match := _string(message)) is not None])


def _string(message: authorization_pb2.StringMatch) -> StringMatch | None:
    match message.WhichOneof("match_type"):
        case "exact":
            return Exact(message.exact)
        case "prefix":
            return Prefix(message.prefix)
        case "suffix":
            return Suffix(message.suffix)
        case "presence":
            return Presence()
        case _:
            return None


def _accounts(messages: Iterable[authorization_pb2.ServiceAccountMatch]) -> tuple[ServiceAccountMatch, ...]:
    return tuple([ServiceAccountMatch(message.namespace, message.serviceAccount) for message in messages])


def _networks(messages: Iterable[authorization_pb2.Address]) -> tuple[IPNetwork, ...]:
    """The usable entries: an address of 4 or 16 bytes with a length that fits it."""
    ranges = [cidr_of(message.address, message.length & 0xFF) for message in messages]
    return tuple([cidr for cidr in ranges if cidr is not None])

"""Port 15006: plain text entering the pod."""

import socket
from dataclasses import dataclass

import trio

from ztunnel_trio.decide.admit import PlainAdmission, admit_plain
from ztunnel_trio.decide.authorize import Rejection
from ztunnel_trio.model.address import NetworkAddress, SocketAddress
from ztunnel_trio.model.connection import Direction, InboundConnection
from ztunnel_trio.model.refusal import Reason, Refusal, Refused
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.net.failures import ending_of
from ztunnel_trio.net.listener import original_destination
from ztunnel_trio.net.pair import Pair
from ztunnel_trio.net.relay import SocketEnd, pair_of
from ztunnel_trio.net.sockets import SocketFactory
from ztunnel_trio.observe.access.facts import ConnectionFacts
from ztunnel_trio.observe.access.record import ConnectionRecord
from ztunnel_trio.proxy.judge import Judge
from ztunnel_trio.proxy.node import NodeParts
from ztunnel_trio.proxy.registry import InboundEntry, Registry


@dataclass(slots=True, eq=False)
class Passthrough:
    """Serves the plain text that arrives for one workload."""

    node: NodeParts
    info: WorkloadInfo
    sockets: SocketFactory
    registry: Registry
    judge: Judge
    is_transparent: bool

    async def serve(self, sock: socket.socket, client: SocketAddress) -> None:
        """Serve one redirected connection."""
        with self.node.metrics.sockets_open("destination"):
            await self.serve_to(sock, client, original_destination(sock))

    async def serve_to(self, sock: socket.socket, client: SocketAddress, destination: SocketAddress) -> None:
        """Serve a connection meant for `destination`: judged by its address alone, as it proves no identity.

        Leaves one access line whatever happens.
        """
        with self.node.access.connection(client, destination, Direction.INBOUND) as record:
            admission = await self.admit(destination)
            connection = InboundConnection(
                source=client, destination=destination, identity=None, network=self.node.settings.network
            )
            entry = InboundEntry(connection, admission.workload)
            self.registry.inbound.add(entry)
            try:
                record.open(self.facts(client, destination, admission))
                pair = await self.establish(entry, sock, record)
                if pair is not None:
                    record.finish(await entry.relay(pair))
                elif entry.ending is not None:
                    record.finish(entry.ending)
            finally:
                self.registry.inbound.discard(entry)

    async def admit(self, destination: SocketAddress) -> PlainAdmission:
        """Whether a connection to there may be judged.

        Raises:
            Refused: it may not.
        """
        settings, workload = self.node.settings, None
        if destination.port not in settings.illegal_ports:
            workload = await self.node.live.local_workload(self.info, seconds=settings.local_workload_seconds)
        verdict = admit_plain(
            destination, self.info, workload, self.node.live.mesh, illegal_ports=settings.illegal_ports
        )
        if isinstance(verdict, Refusal):
            raise Refused(verdict)
        return verdict

    async def establish(
        self, entry: InboundEntry, sock: socket.socket, record: ConnectionRecord
    ) -> Pair | None:
        """Judge the connection and dial the application from the client's address.

        None: it was ended from outside meanwhile.

        Raises:
            Refused: it may not or could not.
        """
        connection = entry.connection
        verdict = self.judge.authorize(connection, entry.workload)
        if isinstance(verdict, Rejection):
            raise Refused(Refusal(Reason.POLICY_REJECTION, verdict.reason))
        try:
            upstream = await entry.dial(
                self.sockets,
                connection.destination,
                connection.source.ip if self.is_transparent else None,
                self.node.settings.connect_seconds,
            )
        except (OSError, trio.TooSlowError) as error:
            raise Refused(Refusal(Reason.CONNECT_FAILED, cause=ending_of(error))) from error
        if upstream is None:
            return None
        return pair_of(self.node.engine, SocketEnd(sock), SocketEnd(upstream), record.traffic)

    def facts(
        self, client: SocketAddress, destination: SocketAddress, admission: PlainAdmission
    ) -> ConnectionFacts:
        """What the access log and the metrics tell of this connection."""
        mesh = self.node.live.mesh
        source = mesh.workload_at(NetworkAddress(self.node.settings.network, client.ip))
        return ConnectionFacts(
            direction=Direction.INBOUND,
            source=client,
            destination=destination,
            hbone_target=None,
            source_workload=source,
            source_identity=None,
            source_baggage=None,
            destination_workload=admission.workload,
            destination_identity=None,
            destination_baggage=None,
            destination_service=admission.service,
            mutual_tls=False,
        )

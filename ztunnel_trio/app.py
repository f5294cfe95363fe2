"""Opens the nursery tree around the parts; no logic.

    services            engine, admin, stats and readiness servers
    └─ control          discovery, certificates, revocation lists
       └─ proxies       the workload proxies, and the agent that starts and stops them

Users of a service stop before the service: proxies closes first, then control, then services.
"""

import os
import signal
from pathlib import Path
from typing import Final

import trio

from ztunnel_trio.assembly import Parts, build, make_workload_proxies
from ztunnel_trio.build_info import BuildInfo
from ztunnel_trio.config import Config, ProxyMode
from ztunnel_trio.control.grpc import open_control_loop
from ztunnel_trio.early_signals import ENDING
from ztunnel_trio.inpod.agent import GATE_NAME, AgentSettings, NodeAgentLink
from ztunnel_trio.net.netns import check_privileges
from ztunnel_trio.observe.log import get_logger
from ztunnel_trio.shortcuts import collector
from ztunnel_trio.supervise.drain import Drain
from ztunnel_trio.supervise.keep_running import Part

log = get_logger("app")
factory_log = get_logger("proxyfactory")
signal_log = get_logger("signal")

DEDICATED_UID: Final = "dedicated"
OWN_UID: Final = "ztunnel"


def run(config: Config, about: BuildInfo, began: float) -> None:
    """Run the proxy until it is drained. `began` is when the process did, by `time.perf_counter`.

    Raises:
        ConfigError: it cannot start like this; also Unavailable and OSError, within groups.
        ProtocolMismatch: the CNI agent broke the protocol beyond repair, within groups.
    """
    collector.settle()
    trio.run(serve, config, about, began)


async def serve(config: Config, about: BuildInfo, began: float) -> None:
    """The nursery tree."""
    is_shared = config.proxy_mode is ProxyMode.SHARED
    log.info("shared proxy mode - in-pod mode enabled" if is_shared else "proxy mode enabled")
    parts = build(config, about, began)
    async with trio.open_nursery() as services:
        await services.start(parts.engine.run)
        parts.metrics.watch_loop(parts.engine.tell_waits)
        keep_running = parts.supervisor.keep_running
        services.start_soon(keep_running, Part(kind="metrics"), parts.metrics.run)
        services.start_soon(keep_running, Part(kind="wall clock"), parts.clock.run)
        await services.start(drain_on_signals, parts.drain)
        for server in parts.servers:
            await services.start(server.run, parts.drain.requested)
        async with open_control_loop(), trio.open_nursery() as control:
            if parts.streams is not None:
                control.start_soon(parts.streams.run)
            await control.start(parts.keeper.run)
            if parts.ads is not None:
                control.start_soon(parts.ads.run)
            if parts.crl is not None:
                control.start_soon(keep_running, Part(kind="revocation list"), parts.crl.run)
            if parts.local_mesh is not None:
                control.start_soon(keep_running, Part(kind="local mesh"), parts.local_mesh.run)
            await serve_proxies(parts)
            control.cancel_scope.cancel(reason="every proxy has ended")
        services.cancel_scope.cancel(reason="drained")


async def serve_proxies(parts: Parts) -> None:
    """The workload proxies and whoever starts them, until the drain is over."""
    config, drain = parts.config, parts.drain
    async with trio.open_nursery() as proxies:
        workload_proxies = parts.workload_proxies = make_workload_proxies(parts, proxies)
        if config.proxy_mode is ProxyMode.DEDICATED:
            assert config.proxy_workload_information is not None
            await workload_proxies.start_here(
                DEDICATED_UID, config.proxy_workload_information, begin=parts.mesh_arrived
            )
            have_started(parts)
            return
        check_privileges(config.packet_mark)
        if config.ztunnel_workload is not None:
            factory_log.info(
                "creating ztunnel self-proxy listener with identity: %s", config.ztunnel_identity
            )
            await workload_proxies.start_here(
                OWN_UID, config.ztunnel_workload, is_own=True, begin=parts.mesh_arrived
            )
        agent = NodeAgentLink(
            AgentSettings(path=Path(config.inpod_uds)),
            workload_proxies,
            parts.gates[GATE_NAME],
            parts.supervisor,
        )
        have_started(parts)
        if await drain.lets_come(parts.mesh_arrived):
            await agent.run(drain)


def have_started(parts: Parts) -> None:
    """All but the pods' proxies, which the agent answers for."""
    for name, gate in parts.gates.items():
        if name != GATE_NAME:
            gate.open()


async def drain_on_signals(
    drain: Drain, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """SIGTERM and SIGINT ask for the drain; a second SIGINT ends the process."""
    is_impatient = False
    between: list[int] = []  # who had the signals before is gone, or Trio has given them back
    for each in ENDING:
        signal.signal(each, lambda number, _: between.append(number))
    try:
        with trio.open_signal_receiver(*ENDING) as signals:
            for number in between:
                signal.raise_signal(number)
            task_status.started()
            async for number in signals:
                name = signal.Signals(number).name
                if not drain.is_requested:
                    signal_log.info("received signal %s, starting shutdown", name)
                    is_impatient = number == signal.SIGINT
                    drain.request(name)
                elif number == signal.SIGINT and is_impatient:
                    signal_log.info("Double Ctrl+C, exit immediately")
                    os._exit(0)  # an operator who insists does not wait for us to tidy up
    finally:
        for each in ENDING:  # one more must not spoil a clean exit, also not while Python takes itself down
            signal.signal(each, signal.SIG_IGN)

"""Limits of the process: its end, its threads, the compliance policy it is held to."""

import math

from ztunnel_trio import compliance
from ztunnel_trio.config.environment import Environment
from ztunnel_trio.config.machine import Machine
from ztunnel_trio.config.values import Unstartable
from ztunnel_trio.facts import defaults, env
from ztunnel_trio.grammar import (
    parse_cpus,
    parse_duration,
    parse_threads,
)


def load_termination(values: Environment) -> float:
    """The drain's deadline: explicit, else a little less than Kubernetes' grace period, else 5 s."""
    explicit = values.read(env.CONNECTION_TERMINATION_DEADLINE, parse_duration, None)
    if explicit is not None:
        return explicit
    if values.text(env.TERMINATION_GRACE_PERIOD_SECONDS) is None:
        return defaults.DRAIN_SECONDS
    grace = values.number(env.TERMINATION_GRACE_PERIOD_SECONDS, 0, bits=64)
    return float(grace - 5 if grace > 10 else max(grace - 1, 1))


def load_threads(values: Environment, concurrency: int | None, machine: Machine) -> int:
    """The number of worker threads the reference would run (ztunnel src/config.rs); shown, not used."""
    limit = values.read(env.ZTUNNEL_RESOURCE_CPU_LIMIT, parse_cpus, 0) if concurrency is None else 0
    request = values.read(env.ZTUNNEL_RESOURCE_CPU_REQUEST, parse_cpus, 0) if concurrency is None else 0
    cpus = limit or values.number(env.ZTUNNEL_CPU_LIMIT, machine.cpu_count(), bits=64)
    if concurrency is not None:
        default = concurrency or cpus
    elif limit:
        default = max(limit, request)
    else:
        default = max(math.ceil(cpus / 4), request, 2)
    return values.read(env.ZTUNNEL_WORKER_THREADS, lambda text: parse_threads(text, cpus), max(1, default))


def check_compliance(values: Environment) -> None:
    """See that `pqc` is kept to; any other compliance policy is without effect here.

    Raises:
        Unstartable: it is not.
    """
    if values.text(env.COMPLIANCE_POLICY) == compliance.PQC and (reason := compliance.shortfall()):
        raise Unstartable(
            f"invalid configuration: {env.COMPLIANCE_POLICY}={compliance.PQC} requires key exchange by"
            f" X25519MLKEM768 alone: {reason}"
        )

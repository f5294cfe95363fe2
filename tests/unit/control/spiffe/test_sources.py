"""Every interface of the agent gives certificates, follows changes, and says what is wrong."""

import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.fakes.spire import (
    PROXY,
    WEB,
    agent_at,
    broker_source,
    key_of,
    own_source,
    processes_source,
    provider_over,
    selectors_source,
    serving,
)
from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import until
from ztunnel_trio.certs.keeper import Keeper
from ztunnel_trio.certs.provider import Withdrawn
from ztunnel_trio.certs.subscribed import TIMEOUT_TEXT, SubscribedCertificates, SvidSource
from ztunnel_trio.control import grpc
from ztunnel_trio.control.spiffe.broker import DRAFT_PACKAGE
from ztunnel_trio.control.spiffe.link import STREAMS_A_CONNECTION
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.facts.grpc import GrpcCode
from ztunnel_trio.lab.ca import Status
from ztunnel_trio.lab.pki import Authority
from ztunnel_trio.lab.spire_agent import Account, AttestedCaller, InNetns, PodUid
from ztunnel_trio.model.certificate import WorkloadCertificate, pem_blocks
from ztunnel_trio.model.certificate_key import CertificateKey
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.workload_reference import BySelectors
from ztunnel_trio.supervise.keep_running import Supervisor
from ztunnel_trio.supervise.wall_clock import WallClock

Make = Callable[[Path], SvidSource]
SOURCES = [selectors_source, processes_source, broker_source, own_source]
each_source = pytest.mark.parametrize("make", SOURCES)


def subjects() -> list[Account | InNetns | AttestedCaller | PodUid]:
    pod = key_of().pod
    assert pod is not None
    assert pod.netns is not None
    return [Account("default", "web"), InNetns(pod.netns), AttestedCaller(), PodUid(pod.uid)]


@each_source
@trio_test
async def test_a_certificate_with_its_key_and_roots(make: Make, tmp_path: Path) -> None:
    async with (
        agent_at(tmp_path, spares_callers=make is broker_source) as agent,
        serving(provider_over(make(tmp_path))) as provider,
    ):
        found = await provider.fetch(key_of())

        roots = tuple(der for _, der in pem_blocks(agent.authority.root_pem))
        assert (found.identity, found.roots_der, found.intermediates_der) == (WEB, roots, ())


@each_source
@trio_test
async def test_a_rotation_is_pushed(make: Make, tmp_path: Path) -> None:
    async with (
        agent_at(tmp_path, spares_callers=make is broker_source) as agent,
        serving(provider_over(make(tmp_path))) as provider,
    ):
        before = await provider.fetch(key_of())
        agent.rotate()
        await provider.changed(key_of())
        after = await provider.fetch(key_of())

        assert after.serial != before.serial


@each_source
@trio_test
async def test_an_authority_that_changes_takes_its_roots_along(make: Make, tmp_path: Path) -> None:
    async with (
        agent_at(tmp_path, spares_callers=make is broker_source) as agent,
        serving(provider_over(make(tmp_path))) as provider,
    ):
        await provider.fetch(key_of())
        agent.rotate(Authority("the next one"))
        roots = tuple(der for _, der in pem_blocks(agent.authority.root_pem))
        while (found := await _newer(provider)).roots_der != roots:
            pass

        assert found.identity == WEB


async def _newer(provider: SubscribedCertificates) -> WorkloadCertificate:
    await provider.changed(key_of())
    return await provider.fetch(key_of())


@each_source
@trio_test
async def test_an_entry_that_is_removed_withdraws_the_certificate(make: Make, tmp_path: Path) -> None:
    async with (
        agent_at(tmp_path, spares_callers=make is broker_source) as agent,
        serving(provider_over(make(tmp_path))) as provider,
    ):
        await provider.fetch(key_of())
        for subject in subjects():
            agent.withdraw(subject)
        await provider.changed(key_of())

        with pytest.raises(Withdrawn, match=r"Mismatched identity: expected .*/sa/web, got nothing"):
            await provider.fetch(key_of())


@each_source
@trio_test
async def test_an_entry_that_is_made_late_is_found(make: Make, tmp_path: Path) -> None:
    async with (
        agent_at(tmp_path, spares_callers=make is broker_source) as agent,
        serving(provider_over(make(tmp_path), first_state_seconds=0.2)) as provider,
    ):
        entries = agent.entries
        agent.entries = {AttestedCaller(): [str(PROXY)]} if make is broker_source else {}
        with pytest.raises(Unavailable, match=TIMEOUT_TEXT):
            await provider.fetch(key_of())
        for subject, identities in entries.items():
            agent.register(subject, *identities)
        await provider.changed(key_of())

        assert (await provider.fetch(key_of())).identity == WEB


@each_source
@trio_test
async def test_an_empty_first_state_is_no_failure(make: Make, tmp_path: Path) -> None:
    async with (
        agent_at(tmp_path, spares_callers=make is broker_source) as agent,
        serving(provider_over(make(tmp_path))) as provider,
    ):
        agent.empty_first = True

        assert (await provider.fetch(key_of())).identity == WEB


@each_source
@trio_test
async def test_a_stream_that_ends_is_opened_again(make: Make, tmp_path: Path) -> None:
    async with (
        agent_at(tmp_path, spares_callers=make is broker_source) as agent,
        serving(provider_over(make(tmp_path))) as provider,
    ):
        before = await provider.fetch(key_of())
        opened = len(agent.opened)
        agent.end_streams()
        await until(lambda: len(agent.opened) > opened)
        agent.rotate()
        await provider.changed(key_of())

        assert (await provider.fetch(key_of())).serial != before.serial


@each_source
@trio_test
async def test_a_refusal_keeps_its_code_and_its_text(make: Make, tmp_path: Path) -> None:
    async with (
        agent_at(tmp_path, spares_callers=make is broker_source) as agent,
        serving(provider_over(make(tmp_path))) as provider,
    ):
        agent.refuse = Status(GrpcCode.PERMISSION_DENIED, "no identity issued")

        with pytest.raises(Unavailable, match=r"PermissionDenied.*no identity issued|no identity issued"):
            await provider.fetch(key_of())


@each_source
@trio_test
async def test_an_agent_that_is_not_there_is_named_by_its_socket(make: Make, tmp_path: Path) -> None:
    async with grpc.open_control_loop(), serving(provider_over(make(tmp_path / "nowhere"))) as provider:
        with pytest.raises(Unavailable, match=r"nowhere/\w+\.sock: No such file or directory"):
            await provider.fetch(key_of())


@each_source
@trio_test
async def test_an_agent_that_never_answers_costs_the_time_set(make: Make, tmp_path: Path) -> None:
    async with (
        agent_at(tmp_path, spares_callers=make is broker_source) as agent,
        serving(provider_over(make(tmp_path), first_state_seconds=0.1)) as provider,
    ):
        agent.is_silent = True

        with pytest.raises(Unavailable, match=TIMEOUT_TEXT):
            await provider.fetch(key_of())


@each_source
@trio_test
async def test_garbage_is_told_without_its_bytes(make: Make, tmp_path: Path) -> None:
    async with (
        agent_at(tmp_path, spares_callers=make is broker_source) as agent,
        serving(provider_over(make(tmp_path))) as provider,
    ):
        agent.garbage = b"\x0fSECRET"

        with pytest.raises(Unavailable) as raised:
            await provider.fetch(key_of())

        assert "cannot be decoded" in str(raised.value)
        assert "SECRET" not in str(raised.value)


@each_source
@trio_test
async def test_the_wrong_id_is_told_with_both(make: Make, tmp_path: Path) -> None:
    async with (
        agent_at(tmp_path, spares_callers=make is broker_source) as agent,
        serving(provider_over(make(tmp_path))) as provider,
    ):
        agent.wrong_id = "spiffe://cluster.local/ns/default/sa/other"

        with pytest.raises(Unavailable, match=r"Mismatched identity: expected \S+/web, got \S+/other"):
            await provider.fetch(key_of())


@trio_test
async def test_a_key_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    async with agent_at(tmp_path) as agent, serving(provider_over(own_source(tmp_path))) as provider:
        agent.foreign_key = True

        with pytest.raises(Unavailable, match="key does not fit the certificate"):
            await provider.fetch(key_of())


@trio_test
async def test_the_good_certificate_stays_while_nonsense_comes(tmp_path: Path) -> None:
    async with agent_at(tmp_path) as agent, serving(provider_over(own_source(tmp_path))) as provider:
        await provider.fetch(key_of())
        agent.foreign_key = True
        agent.rotate()
        await provider.changed(key_of())
        with pytest.raises(Unavailable, match="does not fit") as raised:
            await provider.fetch(key_of())

        assert not isinstance(raised.value, Withdrawn)


@trio_test
async def test_pods_of_one_account_have_certificates_of_their_own(tmp_path: Path) -> None:
    async with agent_at(tmp_path), serving(provider_over(selectors_source(tmp_path))) as provider:
        first, second = [await provider.fetch(key_of(name=name)) for name in ("web-1", "web-2")]

        assert first.identity == second.identity


@trio_test
async def test_a_pod_without_a_process_waits_until_one_appears(tmp_path: Path) -> None:
    pids: list[int] = []

    async def find(_: object) -> list[int]:
        return list(pids)

    async with (
        agent_at(tmp_path) as agent,
        serving(provider_over(processes_source(tmp_path, find), first_state_seconds=0.3)) as provider,
    ):
        with pytest.raises(Unavailable, match=TIMEOUT_TEXT):
            await provider.fetch(key_of())
        assert not [one for one in agent.opened if "SVIDs" in one.path]
        pids.append(os.getpid())
        provider.hurry(key_of())
        await provider.changed(key_of())

        assert (await provider.fetch(key_of())).identity == WEB


@trio_test
async def test_a_process_that_is_somebody_else_is_passed_over(tmp_path: Path) -> None:
    async def find(_: object) -> list[int]:
        return [os.getpid(), os.getpid()]

    async with (
        agent_at(tmp_path) as agent,
        serving(provider_over(processes_source(tmp_path, find), first_state_seconds=0.5)) as provider,
    ):
        for subject in subjects():
            agent.register(subject, "spiffe://cluster.local/ns/default/sa/init")

        with pytest.raises(Unavailable, match=r"got .*sa/init"):
            await provider.fetch(key_of())
        assert len([one for one in agent.opened if "SVIDs" in one.path]) == 2


@trio_test
async def test_a_process_of_another_namespace_is_not_presented(tmp_path: Path) -> None:
    async def find(_: object) -> list[int]:
        return [os.getpid()]

    async with (
        agent_at(tmp_path) as agent,
        serving(provider_over(processes_source(tmp_path, find))) as provider,
    ):
        key = key_of()
        assert key.pod is not None
        elsewhere = type(key)(key.identity, type(key.pod)(key.pod.uid, key.pod.info, (1, 2)))

        with pytest.raises(Unavailable, match="PID mismatch for pod"):
            await provider.fetch(elsewhere)
        assert not [one for one in agent.opened if "SVIDs" in one.path]


@trio_test
async def test_openings_are_limited_and_open_streams_are_not(tmp_path: Path) -> None:
    async with agent_at(tmp_path) as agent, serving(provider_over(selectors_source(tmp_path))) as provider:
        agent.delay = 0.02
        keys = [key_of(name=f"web-{number}") for number in range(40)]
        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(provider.fetch, key)

        assert agent.most_at_once <= 8
        assert len([one for one in agent.opened if "SVIDs" in one.path]) == 40


@trio_test
async def test_a_key_that_is_closed_leaves_no_stream(tmp_path: Path) -> None:
    async with agent_at(tmp_path) as agent, serving(provider_over(selectors_source(tmp_path))) as provider:
        await provider.fetch(key_of())
        provider.close(key_of())
        opened = len(agent.opened)
        agent.end_streams()
        agent.rotate()
        other = key_of(SpiffeId("cluster.local", "default", "web"), name="web-2")
        await provider.fetch(other)

        assert len(agent.opened) == opened + 1


@trio_test
async def test_a_broker_that_does_not_know_us_refuses_in_the_handshake(tmp_path: Path) -> None:
    async with agent_at(tmp_path) as agent:
        stranger = Authority("not the agent's")
        agent.authority, kept = stranger, agent.authority
        async with serving(provider_over(broker_source(tmp_path), first_state_seconds=5.0)) as provider:
            with pytest.raises(Unavailable, match=r"client error \(Connect\)"):
                await provider.fetch(key_of())
        agent.authority = kept


@trio_test
async def test_a_broker_is_asked_once_we_have_a_certificate_of_our_own(tmp_path: Path) -> None:
    async with agent_at(tmp_path) as agent:
        agent.register(AttestedCaller(), str(WEB))
        async with serving(provider_over(broker_source(tmp_path))) as provider:
            with pytest.raises(Unavailable, match=f"own certificate {PROXY}: Mismatched identity"):
                await provider.fetch(key_of())
            agent.register(AttestedCaller(), str(PROXY))
            await provider.changed(key_of())

            assert (await provider.fetch(key_of())).identity == WEB


@trio_test
async def test_the_draft_references_are_another_package(tmp_path: Path) -> None:
    async with agent_at(tmp_path):
        source = replace(broker_source(tmp_path), package=DRAFT_PACKAGE)
        async with serving(provider_over(source)) as provider:
            with pytest.raises(Unavailable, match="WORKLOAD_REFERENCE_INVALID"):
                await provider.fetch(key_of())


@pytest.mark.parametrize("told_again", [[os.getpid()], []])
@trio_test
async def test_a_process_we_cannot_see_is_asked_for_again_after_the_first_state(
    told_again: list[int], tmp_path: Path
) -> None:
    answers = [[os.getpid()], told_again]

    async def find(_: object) -> list[int]:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    source = processes_source(tmp_path, find)
    source.processes.sees_processes = False
    async with agent_at(tmp_path), serving(provider_over(source)) as provider:
        if told_again:
            assert (await provider.fetch(key_of())).identity == WEB
        else:
            with pytest.raises(
                Unavailable, match=r"PID mismatch for pod default/web-1: \d+ is not a process"
            ):
                await provider.fetch(key_of())


@trio_test
async def test_more_streams_than_a_connection_takes_have_another_one(tmp_path: Path) -> None:
    async with agent_at(tmp_path) as agent, serving(provider_over(selectors_source(tmp_path))) as provider:
        keys = [key_of(name=f"web-{number}") for number in range(STREAMS_A_CONNECTION + 20)]
        found: list[WorkloadCertificate] = []

        async def fetch(key: CertificateKey) -> None:
            found.append(await provider.fetch(key))

        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(fetch, key)

        assert len(found) == len(keys)
        agent.rotate()
        await provider.changed(keys[-1])


@trio_test
async def test_all_that_is_known_of_a_pod_is_told_as_selectors(tmp_path: Path) -> None:
    (named,) = await selectors_source(tmp_path).locate(key_of())

    assert named == BySelectors(
        (
            ("k8s", "ns:default"),
            ("k8s", "sa:web"),
            ("k8s", "pod-name:web-1"),
            ("k8s", "pod-uid:uid-web-1"),
            ("k8s", "node-name:node-1"),
        )
    )


@each_source
@trio_test
async def test_an_expired_certificate_is_told_by_the_keeper_and_not_presented(
    make: Make, tmp_path: Path
) -> None:
    async with (
        agent_at(tmp_path, spares_callers=make is broker_source) as agent,
        serving(provider_over(make(tmp_path))) as provider,
        trio.open_nursery() as nursery,
    ):
        await provider.fetch(key_of())  # the proxy's own certificate, which the broker asks for, is good
        provider.close(key_of())
        agent.lifetime = -60.0
        for subject in subjects():
            if make is not broker_source or subject != AttestedCaller():
                agent.rotate_one(subject)
        keeper = Keeper(provider, clock=WallClock(), rng=random.Random(1), supervisor=Supervisor())
        nursery.start_soon(keeper.run)

        with pytest.raises(Unavailable, match=r"expired|valid|ended"):
            await keeper.certificate(key_of())
        nursery.cancel_scope.cancel()

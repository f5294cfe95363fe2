import logging
from dataclasses import replace

import pytest

from tests.fakes.trio_test import trio_test
from tests.fakes.world import SERVER, SOURCE, at, captured, deny_all, world
from ztunnel_trio.decide.authorize import Permit, Rejection
from ztunnel_trio.model.connection import InboundConnection
from ztunnel_trio.model.policy import PolicyScope
from ztunnel_trio.proxy.judge import Judge
from ztunnel_trio.proxy.node import ProxySettings

CONNECTION = InboundConnection(
    source=at("127.0.0.2:1"), destination=at("127.0.0.3:80"), identity=SOURCE.identity
)


@trio_test
async def test_policies_are_compiled_once_while_they_stand() -> None:
    async with world() as it:
        judge = Judge(it.node)
        first = judge.judgement(SERVER)
        it.put(SOURCE)
        assert judge.judgement(SERVER) is first

        it.put(deny_all())
        assert judge.judgement(SERVER) is not first


@trio_test
async def test_a_verdict_follows_the_policies_and_what_is_attached() -> None:
    async with world() as it:
        judge = Judge(it.node)
        assert isinstance(judge.authorize(CONNECTION, SERVER), Permit)
        it.put(deny_all("picky", scope=PolicyScope.WORKLOAD_SELECTOR))
        assert judge.allows(CONNECTION, SERVER)

        picked = replace(SERVER, authorization_policies=("ns/picky",))
        verdict = judge.authorize(CONNECTION, picked)
        assert isinstance(verdict, Rejection)
        assert verdict.reason == "explicitly denied by: ns/picky"
        it.put(no_more=("ns/picky",))
        assert judge.allows(CONNECTION, picked)


@trio_test
async def test_a_policy_nobody_knows_is_told_of_once() -> None:
    async with world() as it:
        judge, picked = Judge(it.node), replace(SERVER, authorization_policies=("ns/unknown",))
        with captured("ztunnel::state") as lines:
            for _ in range(3):
                assert judge.allows(CONNECTION, picked)
        assert [(line["level"], line["message"]) for line in lines.lines] == [
            ("WARNING", "skipping unknown policy ns/unknown")
        ]


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
def test_the_notes_of_a_verdict_are_written_at_the_chosen_level(level: int) -> None:
    @trio_test
    async def main() -> None:
        async with world(ProxySettings(policy_log_level=level)) as it:
            it.put(deny_all())
            with captured("ztunnel::rbac") as lines:
                Judge(it.node).authorize(CONNECTION, SERVER)
                Judge(it.node).allows(CONNECTION, SERVER)  # says nothing
            assert [(line["message"], line.get("policy")) for line in lines.lines] == [
                ("deny policy match", "ns/deny-all")
            ]
            assert lines.lines[0]["level"].lower() == logging.getLevelName(level).lower()

    main()

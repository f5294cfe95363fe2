"""What both kinds of relay share: a body that can be ended from outside."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import App, Counted, tcp_pair
from ztunnel_trio.model.ending import PolicyChanged, Revoked
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.relay import SocketEnd, pair_of


@trio_test
async def test_a_pair_is_cut_at_once() -> None:
    async with trio.open_nursery() as nursery:
        engine = Engine()
        await nursery.start(engine.run)
        (source, captured), (dialled, destination) = tcp_pair(), tcp_pair()
        with source, destination:
            pair = pair_of(engine, SocketEnd(captured), SocketEnd(dialled), Counted())
            with trio.fail_after(1):
                async with trio.open_nursery() as running:
                    running.start_soon(pair.run)
                    await wait_all_tasks_blocked()
                    pair.cut(PolicyChanged())
            assert engine.registered == 0
            assert captured.fileno() == dialled.fileno() == -1
        nursery.cancel_scope.cancel()


@trio_test
async def test_a_pair_cut_before_it_runs_moves_nothing() -> None:
    async with trio.open_nursery() as nursery:
        engine = Engine()
        await nursery.start(engine.run)
        (source, captured), (dialled, destination) = tcp_pair(), tcp_pair()
        with source, destination:
            source.send(b"x")
            counted = Counted()
            pair = pair_of(engine, SocketEnd(captured), SocketEnd(dialled), counted)
            pair.cut(Revoked())
            pair.cut(PolicyChanged())
            with trio.fail_after(1):
                assert await pair.run() == Revoked()
                with pytest.raises(ConnectionResetError):
                    await App(source).receive_all()
            assert counted == Counted(0, 0)
        nursery.cancel_scope.cancel()


@trio_test
async def test_a_pair_that_owes_a_reset_can_be_cut_too() -> None:
    async with trio.open_nursery() as nursery:
        engine = Engine()
        await nursery.start(engine.run)
        (source, captured), (dialled, destination) = tcp_pair(), tcp_pair()
        with source, destination:
            while captured.send(bytes(1 << 20)) == 1 << 20:
                pass  # its reader sleeps
            pair = pair_of(engine, SocketEnd(captured), SocketEnd(dialled), Counted())
            pair.owes_reset = captured
            pair.done.set()
            with trio.fail_after(1):
                async with trio.open_nursery() as running:
                    running.start_soon(pair.run)
                    await wait_all_tasks_blocked()
                    assert captured.fileno() >= 0
                    pair.cut(PolicyChanged())
            assert captured.fileno() == -1
        nursery.cancel_scope.cancel()

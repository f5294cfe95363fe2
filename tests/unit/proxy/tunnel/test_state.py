from ztunnel_trio.proxy.tunnel.state import ALIVE, MOVES, TunnelInput, TunnelState


def test_every_state_has_a_row() -> None:
    assert set(MOVES) == set(TunnelState)


def test_every_live_state_can_be_ended_and_lost() -> None:
    for state in ALIVE:
        assert MOVES[state][TunnelInput.END] is TunnelState.CLOSING
        assert MOVES[state][TunnelInput.LOST] is TunnelState.GONE


def test_nothing_comes_back_to_life() -> None:
    for state in set(TunnelState) - ALIVE:
        assert not ALIVE & set(MOVES[state].values())


def test_only_an_open_tunnel_takes_new_streams_and_none_becomes_open_again() -> None:
    assert all(TunnelState.OPEN not in moves.values() for moves in MOVES.values())


def test_every_way_out_of_open_but_the_ends_waits_for_the_last_stream() -> None:
    for event in (TunnelInput.RELEASE, TunnelInput.DRAIN, TunnelInput.GOAWAY):
        assert MOVES[MOVES[TunnelState.OPEN][event]][TunnelInput.EMPTY] is TunnelState.CLOSING

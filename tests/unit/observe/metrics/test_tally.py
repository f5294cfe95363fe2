from ztunnel_trio.observe.metrics import Metrics


def test_open_sockets_are_those_being_served() -> None:
    metrics = Metrics()
    assert "istio_tcp_sockets_open" not in metrics.render().decode()
    with metrics.sockets_open("source"), metrics.sockets_open("source"):
        assert '\nistio_tcp_sockets_open{reporter="source"} 2\n' in metrics.render().decode()
    assert '\nistio_tcp_sockets_open{reporter="source"} 0\n' in metrics.render().decode()

from ztunnel_trio.config.machine import ThisMachine


def test_this_machine_is_asked_for_real(tmp_path: object) -> None:
    machine = ThisMachine()

    assert machine.cpu_count() >= 1
    assert machine.exists("/proc/self/status")
    assert not machine.exists("-----BEGIN CERTIFICATE-----\x00" + "x" * 5000)
    assert "Name:" in machine.read_text("/proc/self/status")

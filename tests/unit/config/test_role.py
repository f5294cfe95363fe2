from tests.fakes.machine import loaded
from ztunnel_trio.model.workload import WorkloadInfo


def test_a_dedicated_proxy_knows_who_it_is() -> None:
    config = loaded({"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "ns/name/sa/rest"})

    assert config.proxy_workload_information == WorkloadInfo("name", "ns", "sa/rest")
    assert config.packet_mark is None


def test_a_shared_proxy_ignores_who_it_is() -> None:
    assert loaded({"PROXY_WORKLOAD_INFO": "nonsense"}).proxy_workload_information is None


def test_the_proxys_own_identity_needs_three_names() -> None:
    names = {"POD_NAMESPACE": "istio-system", "SERVICE_ACCOUNT": "ztunnel", "POD_NAME": "ztunnel-a"}

    config = loaded({**names, "TRUST_DOMAIN": "td"})

    assert str(config.ztunnel_identity) == "spiffe://td/ns/istio-system/sa/ztunnel"
    assert config.ztunnel_workload == WorkloadInfo("ztunnel-a", "istio-system", "ztunnel")
    assert (config.told.pod_name, config.told.pod_namespace) == ("ztunnel-a", "istio-system")
    for missing in names:
        partly = loaded({name: value for name, value in names.items() if name != missing})
        assert (partly.ztunnel_identity, partly.ztunnel_workload) == (None, None)


def test_metadata_in_json_is_parsed_and_bad_metadata_left_out() -> None:
    config = loaded({"ISTIO_METAJSON_GOOD": '{"a": [1]}', "ISTIO_METAJSON_BAD": "{"})

    assert config.told.node_metadata_json == {"GOOD": {"a": [1]}}
    assert any(note.startswith("ISTIO_METAJSON_BAD is left out") for note in config.notes)

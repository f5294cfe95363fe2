from tests.fakes.machine import loaded


def test_values_that_are_not_utf8_count_as_unset() -> None:
    assert loaded({"ENABLE_PROXY": "\udcff", "CLUSTER_ID": "\udcff"}).cluster_id == "Kubernetes"


def test_flags_are_on_only_when_exactly_true() -> None:
    on = loaded({"TLS12_ENABLED": "true", "AUTHZ_POLICY_INFO_LOGGING": "true"})
    off = loaded({"TLS12_ENABLED": "True", "AUTHZ_POLICY_INFO_LOGGING": "1"})

    assert (on.tls12_enabled, on.authz_policy_info_logging) == (True, True)
    assert (off.tls12_enabled, off.authz_policy_info_logging) == (False, False)

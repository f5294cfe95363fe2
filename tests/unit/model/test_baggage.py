"""Baggage carries what a header said and nothing else."""

from ztunnel_trio.model.baggage import Baggage


def test_what_a_header_did_not_carry_is_none() -> None:
    assert Baggage() == Baggage(
        cluster=None,
        namespace=None,
        workload_name=None,
        service_name=None,
        revision=None,
        region=None,
        zone=None,
    )

from pathlib import Path

from ztunnel_trio.observe.metrics.__main__ import reference
from ztunnel_trio.observe.metrics.families import TABLE, FamilyKind

PAGE = Path(__file__).parents[4] / "docs" / "reference" / "metrics.md"


def test_the_reference_page_is_up_to_date() -> None:
    assert PAGE.read_text() == reference()


def test_names_are_used_once_and_counters_have_no_suffix_of_their_own() -> None:
    names = [family.name for family in TABLE]

    assert len(set(names)) == len(names)
    assert not any(family.name.endswith("_total") for family in TABLE if family.kind is FamilyKind.COUNTER)


def test_a_unit_ends_the_name() -> None:
    assert all(family.name.endswith(f"_{family.unit}") for family in TABLE if family.unit)

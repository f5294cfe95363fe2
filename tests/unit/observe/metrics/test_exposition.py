import math

import pytest

from ztunnel_trio.observe.metrics.exposition import escape_label, float_text, label_text


@pytest.mark.parametrize(
    ("value", "text"), [("a", "a"), ('say "hi"', 'say \\"hi\\"'), ("a\\b", "a\\\\b"), ("a\nb", "a\\nb")]
)
def test_label_values_are_escaped(value: str, text: str) -> None:
    assert escape_label(value) == text
    assert label_text([("l", value)]) == f'{{l="{text}"}}'


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1.0"), (0.25, "0.25"), (1e-7, "0.000000100"), (math.pi, "3.141592653589793")]
)
def test_floats_always_show_a_point(value: float, text: str) -> None:
    assert float_text(value) == text

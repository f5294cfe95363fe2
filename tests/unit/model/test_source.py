"""Sources of secrets do not tell them."""

from ztunnel_trio.model.source import Literal


def test_a_literal_does_not_print_its_text() -> None:
    assert "hush" not in repr(Literal("hush"))

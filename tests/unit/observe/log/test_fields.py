import pytest

from ztunnel_trio.observe.log import Bare
from ztunnel_trio.observe.log.fields import one_line, plain_value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", '"plain"'),
        ('a "b" \\', '"a \\"b\\" \\\\"'),
        ("a\nb\tc\r", '"a\\nb\\tc\\r"'),
        ("\x1b[31m", '"\\u{1b}[31m"'),
        ("größe", '"größe"'),
        ("\ud800", '"\\u{d800}"'),
        (Bare("10.0.0.1:80"), "10.0.0.1:80"),
        (Bare("a\nb"), "a\\nb"),
        (7, "7"),
        (1.5, "1.5"),
        (True, "true"),
        (False, "false"),
    ],
)
def test_values_in_plain_lines(value: str | int | float | bool, text: str) -> None:
    assert plain_value(value) == text


def test_one_line_leaves_ordinary_text_alone() -> None:
    assert one_line('say "hi" \\ größe') == 'say "hi" \\ größe'

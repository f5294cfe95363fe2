"""Values under small numbers."""

from ztunnel_trio.mesh.numbered import Numbered


def held(numbered: Numbered[str, str], key: str) -> int:
    """One more holder of a key."""
    number = numbered.number(key)
    if number is None:
        number = numbered.add(key, key.upper())
    numbered.holders[number] += 1
    return number


def test_equal_keys_share_a_number_until_the_last_holder_goes() -> None:
    numbered: Numbered[str, str] = Numbered()
    first = held(numbered, "a")

    assert held(numbered, "a") == first
    assert numbered[first] == "A"
    assert numbered.release(first) is None
    assert numbered.release(first) == "A"
    assert len(numbered) == 0
    assert numbered.number("a") is None


def test_numbers_are_used_again() -> None:
    numbered: Numbered[str, str] = Numbered()
    a, b = held(numbered, "a"), held(numbered, "b")
    numbered.release(a)

    c = held(numbered, "c")

    assert (c, numbered[b], numbered[c]) == (a, "B", "C")
    assert len(numbered.values) == 2

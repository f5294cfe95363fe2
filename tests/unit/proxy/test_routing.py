import random

from ztunnel_trio.proxy.routing import SeededChance


def test_chance_is_that_of_its_seed() -> None:
    for seed in range(5):
        ours, plain = SeededChance(seed), random.Random(seed)
        assert [ours.randrange(100) for _ in range(3)] == [plain.randrange(100) for _ in range(3)]
        assert ours.choice("abc") == plain.choice("abc")
        assert ours.choices("abc", (1, 2, 3)) == plain.choices("abc", (1, 2, 3))

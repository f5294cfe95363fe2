"""How many accepted sockets each side serves."""


class Tally:
    """How many bodies of `with tally:` run now: two additions on the path of every connection."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1

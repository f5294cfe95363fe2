"""Resources of a response that were not taken, and how a NACK tells of them."""

from dataclasses import dataclass, field
from typing import Final

_REJECTIONS_TOLD: Final = 1000


@dataclass(frozen=True, slots=True)
class RejectedResource:
    """A resource we could not take: which one, which field of it, and why.

    `resource` is empty where not even the name could be read; `field` is dotted as in the .proto file, empty
    where it is the resource as a whole. `is_undecodable`: its bytes are no such message.
    """

    resource: str
    field: str
    reason: str
    is_undecodable: bool = False

    def __str__(self) -> str:
        """As a NACK tells it: the words operators know from the Rust ztunnel, which names no fields."""
        return f"{self.resource}: {self.reason}"


@dataclass(slots=True, eq=False)
class Rejections:
    """The resources of one response that were not taken: the first thousand, and how many more.

    A NACK names first what was read and refused, then what could not be read.
    """

    refused: list[RejectedResource] = field(default_factory=list)
    undecodable: list[RejectedResource] = field(default_factory=list)
    more: int = 0

    def add(self, rejection: RejectedResource) -> None:
        """Note one more."""
        if len(self.refused) + len(self.undecodable) >= _REJECTIONS_TOLD:
            self.more += 1
        elif rejection.is_undecodable:
            self.undecodable.append(rejection)
        else:
            self.refused.append(rejection)

    @property
    def fields(self) -> str:
        """The fields that were refused, each once."""
        return ", ".join(dict.fromkeys([one.field for one in self.refused if one.field]))

    @property
    def text(self) -> str | None:
        """The NACK's text; None when there are none."""
        told = [str(one) for one in (*self.refused, *self.undecodable)]
        if self.more:
            told.append(f"and {self.more} more")
        return "; ".join(told) or None

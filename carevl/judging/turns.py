"""Turns of a conversation: who says what, and where images stand in it.

```python
turn = Turn("user", "Which of  and  is older?", (9, 14))
list(turn.parts())  # ["Which of ", None, " and ", None, " is older?"]
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["user", "assistant"]


def shift_places(places: tuple[int, ...], by: int) -> tuple[int, ...]:
    """Return places in a text that stands `by` characters behind others; images before all words stay before them."""
    return tuple(place + by for place in places) if any(places) else places


def images_last(parts: Sequence[str | None]) -> list[str | None]:
    """Return the parts of a turn with its images behind its words, if all of them stand before these.

    Where others stand among the words nothing is moved: images keep their order, by which it is told which is which.
    """
    first = next((n for n, part in enumerate(parts) if part is not None), 0)
    return [*parts] if None in parts[first:] else [*parts[first:], *parts[:first]]


@dataclass(frozen=True)
class Turn:
    """What one side says at a time.

    `places` are the characters of the text before which an image stands, in ascending order; one that is there twice
    has two images. They say nothing of which images these are: those of a conversation stand in its order.
    """

    role: Role
    text: str
    places: tuple[int, ...] = ()

    def parts(self) -> Iterator[str | None]:
        """Yield the pieces of text that are not empty, and None for every image."""
        begin = 0
        for place in self.places:
            if place > begin:
                yield self.text[begin:place]
            yield None
            begin = place
        if begin < len(self.text):
            yield self.text[begin:]


def turns_before(item: Mapping[str, Any]) -> tuple[Turn, ...]:
    """Return the turns before the question of a row of the table `items`."""
    return tuple(Turn(turn["role"], turn["text"], tuple(turn["places"])) for turn in item["turns"])


def turns_of(item: Mapping[str, Any]) -> tuple[Turn, ...]:
    """Return all turns of a row of the table `items`; the last is the question."""
    return (*turns_before(item), Turn("user", item["question"], tuple(item["places"])))

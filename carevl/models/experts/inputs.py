"""What an expert reads of an item: its turns, with captions where images stand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from carevl.judging.turns import Turn
from carevl.models.conversations import Dialogue

if TYPE_CHECKING:
    from PIL.Image import Image

    from carevl.models.experts.base import ImageRow, TextRow
    from carevl.settings.models import Expert

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True)
class ExpertInput:
    """An item as an expert reads it: with so much of its captions, or with none of them; or with its images."""

    turns: tuple[Turn, ...]
    """The last is the question."""
    responses: Sequence[str]
    captions: tuple[str, ...] | None
    """Of its images, in the order in which they stand; None: it is read without."""
    images: tuple[Image, ...] = ()
    testimony: str | None = None
    """What an observer of the images says; it stands between captions and question."""

    def row(self, expert: Expert) -> TextRow:
        """Return what experts of texts are asked: all of it, the responses, and the same without captions."""
        read = fill_captions(expert, self.turns, self.captions, self.testimony)
        return read, self.responses, fill_captions(expert, self.turns, None)

    def image_row(self) -> ImageRow:
        """Return what experts are asked that see the images."""
        return self.turns, self.responses, self.images

    @property
    def n_characters(self) -> int:
        """Characters of its captions."""
        return sum(map(len, self.captions or ()))

    def shorter(self) -> ExpertInput | None:
        """Without the last sentence of its longest caption; None when it has none of several sentences."""
        captions = [caption.strip() for caption in self.captions or ()]
        cuts = [[match.start() for match in _SENTENCE.finditer(caption)] for caption in captions]
        several = [place for place, ends in enumerate(cuts) if ends]
        if not several:
            return None
        longest = max(several, key=lambda place: len(captions[place]))
        captions[longest] = captions[longest][: cuts[longest][-1]]
        return replace(self, captions=tuple(captions))


def fill_captions(
    expert: Expert, turns: Sequence[Turn], captions: Sequence[str] | None, testimony: str | None = None
) -> Dialogue:
    """Return turns as an expert of texts reads them.

    Captions of the images that a user's turn begins with are filled into the expert's template; those of others stand
    in brackets where the image stands. Of several images each has its number. Without captions the number alone is left
    where an image stands within a text. Testimony is filled in where the last turn, the question, has its captions.
    """
    n_images = sum(len(turn.places) for turn in turns)
    numbered = iter(enumerate([""] * n_images if captions is None else captions, 1))
    written = []
    for turn in turns:
        leading: list[str] = []
        text = ""
        begin = 0
        for place in turn.places:
            number, caption = next(numbered)
            name = f"Image {number}"
            if place == 0 and turn.role == "user":
                leading += [] if captions is None else [caption if n_images == 1 else f"{name}: {caption}"]
                continue
            text += turn.text[begin:place] + (f"[{name}]" if captions is None else f"[{name}: {caption}]")
            begin = place
        text += turn.text[begin:]
        if turn.role == "user":
            said = testimony if turn is turns[-1] else None
            text = expert.write("\n".join(leading) if leading else None, text, said)
        written.append(Turn(turn.role, text))
    return written[0].text if len(written) == 1 else tuple(written)

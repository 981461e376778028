"""Texts that are rewritten for reading and still know where each character came from."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

Span = tuple[int, int]
"""Begin and end of a part of a text, in characters."""

_CLUSTER = re.compile(r"[^\u0300-\u036f\u3099\u309a][\u0300-\u036f\u3099\u309a]*|[\u0300-\u036f\u3099\u309a]+")
"""A character with its combining marks: what Unicode's normal form makes one of."""
_ALIKE = str.maketrans(
    {
        **dict.fromkeys("`“”„‟«»「」『』《》", '"'),
        **dict.fromkeys("‘’‚‛", "'"),
        **dict.fromkeys("‐‑‒–—―−", "-"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", ""),
        **dict.fromkeys("≻≽⟩›", ">"),
        **dict.fromkeys("≺≼⟨‹", "<"),
        "。": ". ",
        "、": ",",
        "【": "[",
        "】": "]",
        "⁄": "/",
        **dict.fromkeys("→⟶⇒", "->"),
        "≥": ">=",
        "≤": "<=",
        "≈": "~",
        "±": "+",
        "\r": "",
    }
)


@dataclass(frozen=True)
class MappedText:
    """A text, and for each of its characters the span of the original that it stands for."""

    text: str
    places: tuple[Span, ...]

    @classmethod
    def of(cls, text: str) -> MappedText:
        """Return a text that stands for itself."""
        return cls(text, tuple((i, i + 1) for i in range(len(text))))

    def part(self, begin: int, end: int) -> MappedText:
        """Return a part of it."""
        return MappedText(self.text[begin:end], self.places[begin:end])

    def span(self, begin: int, end: int) -> Span:
        """Return where in the original some of its characters (at least one) stand."""
        return self.places[begin][0], self.places[end - 1][1]

    def replace(self, pattern: re.Pattern[str], by: str) -> MappedText:
        """Replace every match by a word that stands for all of it."""
        texts: list[str] = []
        places: list[Span] = []
        at = 0
        for match in pattern.finditer(self.text):
            begin, end = match.span()
            if begin < end:
                texts += [self.text[at:begin], by]
                places += [*self.places[at:begin], *[self.span(begin, end)] * len(by)]
                at = end
        return MappedText("".join([*texts, self.text[at:]]), (*places, *self.places[at:])) if at else self

    def replace_around(self, pattern: re.Pattern[str], before: str, after: str) -> MappedText:
        """Replace what matches around the first group; what matches the group stays, in its place."""
        texts: list[str] = []
        places: list[Span] = []
        at = 0
        for match in pattern.finditer(self.text):
            begin, end = match.span(1)
            texts += [self.text[at : match.start()], before, self.text[begin:end], after]
            places += [*self.places[at : match.start()], *[self.span(match.start(), begin)] * len(before)]
            places += [*self.places[begin:end], *[self.span(end, match.end())] * len(after)]
            at = match.end()
        return MappedText("".join([*texts, self.text[at:]]), (*places, *self.places[at:])) if at else self

    def normalised(self) -> MappedText:
        """Return its compatibility normal form (NFKC), with one kind of quotes, dashes, blanks and full stops."""
        if self.text.isascii() and not {"\r", "`"} & set(self.text):
            return self
        texts: list[str] = []
        places: list[Span] = []
        for match in _CLUSTER.finditer(self.text):
            words = unicodedata.normalize("NFKC", match[0].translate(_ALIKE)).translate(_ALIKE)
            texts.append(words)
            places += [self.span(*match.span())] * len(words)
        return MappedText("".join(texts), tuple(places))

    def normalised_in_place(self) -> MappedText:
        """Return its normal form, each character of which stands for what it stood for here."""
        inner = MappedText.of(self.text).normalised()
        return MappedText(inner.text, tuple(self.span(*place) for place in inner.places))

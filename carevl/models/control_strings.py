"""Strings in texts that a tokenizer would read as control tokens: they are found, and read letter by letter.

So a text that names them (`<|im_end|>`, `<image>`) can neither end a turn nor stand for an image.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from carevl.judging.markup import thinking_tags

Span = tuple[int, int]
"""Begin and end of a part of a text, in characters."""

_SENTINELS = range(0x100000, 0x10FFFE)
"""Characters for private use, of Unicode's last plane."""
_BLANK = "\u2581 \t\r\n"
"""Characters of added tokens that stand for blank space; there are such tokens, and they control nothing."""
_control_ids: WeakKeyDictionary[Any, tuple[int, frozenset[int]]] = WeakKeyDictionary()
"""Size of a tokenizer and the ids of its control tokens, which thousands of added ones make slow to list."""


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text without any control token, such as a reply."""
    return encode_text_with_offsets(tokenizer, text)[0]


def encode_reply(tokenizer: Any, text: str) -> tuple[list[int], list[Span]]:
    """Return the token ids of what a judge wrote, and the characters that each stands for.

    The tags around its thinking are the tokens that it wrote, where the tokenizer has such; nothing else controls.
    """
    return encode_text_with_offsets(tokenizer, text, thinking_tags(text))


def encode_text_with_offsets(tokenizer: Any, text: str, tags: Sequence[Span] = ()) -> tuple[list[int], list[Span]]:
    """Return the token ids of a text without any control token, and the characters that each stands for.

    Args:
        tags: parts that may be control tokens.
    """
    written = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = written["input_ids"], written["offset_mapping"]
    control = control_ids(tokenizer)
    if control.isdisjoint(ids):
        return ids, offsets
    plain = _PlainStrings(tokenizer, control)
    replacements = {
        i: plain(text[slice(*offsets[i])])
        for i, token in enumerate(ids)
        if token in control and not any(begin <= offsets[i][0] < end for begin, end in tags)
    }
    spliced = _splice({"ids": ids, "offsets": offsets}, "ids", replacements)
    return spliced["ids"], spliced["offsets"]


def control_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of the tokens that no text may become: special ones, and added ones that are not blank space."""
    known = _control_ids.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        added = tokenizer.added_tokens_decoder.items()
        ids = frozenset(i for i, token in added if token.special or token.content.strip(_BLANK))
        known = _control_ids[tokenizer] = len(tokenizer), ids
    return known[1]


def find_control_strings(tokenizer: Any, texts: Sequence[str], placeholders: Iterable[str] = ()) -> list[list[Span]]:
    """Return the parts of texts that would be read as control tokens, or as one of the placeholders, in their order.

    Blank space around them that the tokenizer counts in is not among them.
    """
    if not texts:
        return []
    written = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    control = control_ids(tokenizer)
    pattern = re.compile("|".join(map(re.escape, sorted(placeholders, key=len, reverse=True))) or r"(?!)")
    found = []
    for text, ids, offsets in zip(texts, written["input_ids"], written["offset_mapping"], strict=True):
        spans = [span for i, span in zip(ids, offsets, strict=True) if i in control and span[0] < span[1]]
        if pattern.search(text):
            spans += [match.span() for match in pattern.finditer(text)]
        found.append(_disjoint(_trim(text, span) for span in spans))
    return found


class RestoringTokenizer:
    """A tokenizer that reads characters as the strings that they stand for, and encodes these as plain text.

    It has all attributes of the tokenizer that it wraps, and is called with a list of texts, or two of pairs.

    Args:
        tokenizer: a fast one.
        strings: the string of every character.
    """

    def __init__(self, tokenizer: Any, strings: Mapping[str, str]) -> None:
        self._inner, self._strings = tokenizer, strings
        self._pattern = re.compile("|".join(map(re.escape, strings)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __len__(self) -> int:
        return len(self._inner)

    def __call__(
        self,
        text: Sequence[str],
        text_pair: Sequence[str] | None = None,
        *,
        padding: bool | str = False,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        **options: Any,
    ) -> Any:
        """Encode texts; arguments and result as the wrapped tokenizer's, `char_to_token` the one of its methods."""
        columns = [text] if text_pair is None else [text, text_pair]
        restored = [[self._restore(entry) for entry in column] for column in columns]
        written = self._inner(
            *([words for words, _ in column] for column in restored), return_offsets_mapping=True, **options
        )
        control = control_ids(self._inner)
        plain = _PlainStrings(self._inner, control)
        rows = []
        for number in range(len(text)):
            fields = {name: values[number] for name, values in written.items()}
            replacements = {}
            for i, (part, (begin, end)) in enumerate(
                zip(written.sequence_ids(number), fields["offset_mapping"], strict=True)
            ):
                if part is None or fields["input_ids"][i] not in control:
                    continue
                words, own = restored[part][number]
                if any(begin < last and first < end for first, last in own):
                    replacements[i] = plain(words[begin:end])
            rows.append(_splice(fields, "input_ids", replacements))
        places = [row.pop("offset_mapping") for row in rows]
        joined = {name: [row[name] for row in rows] for name in rows[0]}
        padded = self._inner.pad(joined, padding=padding, padding_side=padding_side, return_tensors=return_tensors)

        def char_to_token(number: int, char: int) -> int | None:
            at = len(self._restore(text[number][:char])[0])
            present = [column for column, seen in enumerate(padded["attention_mask"][number]) if seen]
            covers = (begin <= at < end for begin, end in places[number])
            return next((column for column, covered in zip(present, covers, strict=True) if covered), None)

        padded.char_to_token = char_to_token
        return padded

    def _restore(self, text: str) -> tuple[str, list[Span]]:
        """Return the text with its strings, and where these are in it."""
        parts, spans, at, length = [], [], 0, 0
        for match in self._pattern.finditer(text):
            before, string = text[at : match.start()], self._strings[match.group()]
            length += len(before)
            spans.append((length, length + len(string)))
            length += len(string)
            parts += [before, string]
            at = match.end()
        return "".join([*parts, text[at:]]), spans


def replace_control_strings(
    tokenizer: Any, texts: Sequence[str], placeholders: Iterable[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """Return texts with a character for private use in place of every control string, and the string of each.

    The texts may then go through a template; a `RestoringTokenizer` encodes what comes of it.
    """
    spans = find_control_strings(tokenizer, texts, placeholders)
    found = [text[slice(*span)] for text, own in zip(texts, spans, strict=True) for span in own]
    if not found:
        return list(texts), {}
    present = set("".join(texts))
    free = (chr(code) for code in _SENTINELS if chr(code) not in present)
    sentinels = dict(zip(dict.fromkeys(found), free, strict=False))
    replaced = []
    for text, own in zip(texts, spans, strict=True):
        bounds = [0, *itertools.chain.from_iterable(own), len(text)]
        pieces = [text[begin:end] for begin, end in itertools.pairwise(bounds)]
        replaced.append("".join(sentinels[piece] if n % 2 else piece for n, piece in enumerate(pieces)))
    return replaced, {sentinel: string for string, sentinel in sentinels.items()}


class _PlainStrings:
    """Token ids of strings as plain text, each encoded once."""

    def __init__(self, tokenizer: Any, control: frozenset[int]) -> None:
        self.tokenizer, self.control = tokenizer, control
        self._known: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._encode(text)
        return self._known[text]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if len(text) < 2 or self.control.isdisjoint(ids):
            return ids
        # Added tokens that are not special are found all the same, but not in parts of them.
        return self._encode(text[:1]) + self._encode(text[1:])


def _splice(
    fields: Mapping[str, Sequence[Any]], ids: str, replacements: Mapping[int, list[int]]
) -> dict[str, list[Any]]:
    """Return columns with an entry per token, some tokens replaced by several; all columns but `ids` repeat theirs."""
    return {
        name: [
            entry
            for i, value in enumerate(values)
            for entry in (
                [value] if i not in replacements else replacements[i] if name == ids else [value] * len(replacements[i])
            )
        ]
        for name, values in fields.items()
    }


def _trim(text: str, span: Span) -> Span:
    begin, end = span
    words = text[begin:end]
    return begin + len(words) - len(words.lstrip()), end - len(words) + len(words.rstrip())


def _disjoint(spans: Iterable[Span]) -> list[Span]:
    """Return spans in order, without those that overlap an earlier one."""
    kept: list[Span] = []
    for begin, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if begin < end and (not kept or begin >= kept[-1][1]):
            kept.append((begin, end))
    return kept

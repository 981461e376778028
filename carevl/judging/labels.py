"""Where a judgment says that its verdict follows: labels in its words, boxes and tags, and keys of JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from carevl.judging.languages import LANGUAGES, Language
from carevl.judging.mapped_text import MappedText, Span
from carevl.judging.markup import CLOSE, OPEN
from carevl.judging.prompts import Task
from carevl.judging.statements import Token, alternatives, tokens_of


@dataclass(frozen=True)
class Passage:
    """What follows a label, up to the next one.

    `begin`: where the label begins in the words that `source` stands for; `last`: whether the text ends with it;
    `weak`: whether it counts only where no other label has a verdict.
    """

    source: MappedText
    tokens: tuple[Token, ...]
    begin: int
    last: bool
    weak: bool = False


@dataclass(frozen=True)
class _Label:
    """Where a label begins, and where what follows it does."""

    begin: int
    value: int
    weak: bool = False


@dataclass(frozen=True)
class Marked:
    """A judgment by its labels: the passages after them, and the tokens of all that is not quoted or JSON."""

    passages: tuple[Passage, ...]
    prose: tuple[Token, ...]
    evidence: str | None
    """What JSON gives as its evidence, if it does."""


_NOUN_OF: dict[Task, str] = {"pairwise": "headings", "pointwise": "ratings", "ranking": "rankings"}
_OBJECT = re.compile(r"\{\s*\"[^\"\n]+\"\s*:")
_FIELD = re.compile(
    r"\"(?P<key>(?:[^\"\\]|\\.)*)\"\s*:\s*(?:\"(?P<text>(?:[^\"\\]|\\.)*)\"|(?P<array>\[[^\[\]]*\])|(?P<plain>-?[\d.]+))"
)
_KEY = re.compile(r"\"((?:[^\"\\]|\\.)*)\"\s*:")
_ESCAPES = {r"\\n": "\n", r"\\t": " ", r"\\r": "", r"\\\"": '"', r"\\/": "/"}
_UNICODE = re.compile(r"\\u([0-9a-fA-F]{4})")
_QUOTE = re.compile(r"(?<!\w)\"(?=\S)[^\"\n]*(?<=\S)\"(?!\w)|(?<!\w)'(?=\S)[^'\n]*(?:\w'\w[^'\n]*)*(?<=\S)'(?!\w)")
_BLOCK = re.compile(r"^[ \t]*>[ \t]*[^\n]*$", re.MULTILINE)
_NEAR = 200
"""Characters before a label that may say whose verdict it announces: a judge that repeats itself has long lines."""
_LINE_START = re.compile(r"[\s\-•>(\"'|#]*(?:\d+[.)]\s*)?")
_STATEMENT = re.compile("[NH].*[BMEeW]|[BMEeW].*[NH]")


def mark(norm: MappedText, task: Task) -> Marked:
    """Find the labels of a text, and what follows them."""
    text, evidence = norm.text, None
    found: list[Passage] = []
    if start := _OBJECT.search(text):
        begin, end = start.start(), text.rfind("}") + 1 or len(text)
        end = end if end > begin else len(text)
        found, evidence = _read_json(norm, begin, end, task)
        text = text[:begin] + " " * (end - begin) + text[end:]
    labels = list(_labels(text, task))
    quotes = _quotes(text, labels)
    labels = [label for label in labels if not any(begin < label.begin < end for begin, end in quotes)]
    ends = [*(label.begin for label in labels[1:]), len(text)][: len(labels)]
    place = None
    for label, end in zip(labels, ends, strict=True):
        place = norm.places[label.begin][0] if place is None else place
        closed = text.find(CLOSE, label.value, end) if text[label.begin] == OPEN else -1
        stop = closed if closed >= 0 else end
        tokens = _unquoted(tokens_of(text, label.value, stop), quotes)
        found.append(Passage(norm, tokens, place, not text[stop:].strip(), label.weak))
        place = None if text[label.value : end].strip() else place  # a box after a label begins where that does
    return Marked(tuple(found), _unquoted(tokens_of(text), quotes), evidence)


def _read_json(norm: MappedText, begin: int, end: int, task: Task) -> tuple[list[Passage], str | None]:
    """Return what stands under keys that are labels, and under one of evidence; else under whichever holds a label."""
    keyed: list[Passage] = []
    held: list[Passage] = []
    evidence = None
    keys, reasons = _keys(task, tuple(LANGUAGES.values()))
    for field in _FIELD.finditer(norm.text, begin, end):
        key = _unescaped(norm.part(*field.span("key"))).text
        key = re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", key).strip()
        group = next(name for name in ("text", "array", "plain") if field[name] is not None)
        value = _unescaped(norm.part(*field.span(group)))
        inside = [] if group != "text" else mark(value, task).passages
        if reasons.fullmatch(key):
            evidence = evidence or value.text.strip()
        elif keys.fullmatch(key):
            place = norm.places[field.start()][0]
            keyed += inside or [Passage(value, tuple(tokens_of(value.text)), place, last=False)]
        else:
            held += inside
    if not keyed and any(_names_response(key[1]) for key in _KEY.finditer(norm.text, begin, end)):
        held = []  # the text of a response
    return keyed or held, evidence


def _names_response(key: str) -> bool:
    return "".join(token.letter for token in tokens_of(key)).strip("A") == "N"


def _unescaped(value: MappedText) -> MappedText:
    if "\\" not in value.text:
        return value
    for pattern, by in _ESCAPES.items():
        value = value.replace(re.compile(pattern), by)
    for code in set(_UNICODE.findall(value.text)):
        value = value.replace(re.compile(rf"\\u{code}"), chr(int(code, 16)))
    return value.normalised_in_place()


@lru_cache(maxsize=8)
def _keys(task: Task, languages: tuple[Language, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    fields = dict.fromkeys(("labels", "headings", "fields", _NOUN_OF[task]))
    keys = "|".join(alternatives(field, languages) for field in fields)
    return re.compile(keys, re.IGNORECASE), re.compile(alternatives("evidence", languages), re.IGNORECASE)


@lru_cache(maxsize=8)
def _patterns(task: Task, languages: tuple[Language, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return the expressions of labels, and of what may stand between one and its verdict."""
    headings = "|".join(alternatives(field, languages) for field in dict.fromkeys(("headings", _NOUN_OF[task])))
    is_ = alternatives("is_", languages)
    aside = r"[\"')\]]*(?P<aside>\s*\([^()\n]*\)|(?P<about>\s+(?:on|of|for|about)\s[^:\n.\d]{0,40}(?=:)))?"
    sign = rf"\s*(?:(?:{is_}\s*)?(?::+|=+>?|->|\|)|\s-+>?(?=\s)|{is_})\s*"
    after = rf"{aside}(?:(?P<sign>{sign})|(?P<line>[ \t]*\n\s*))"
    words = alternatives("labels", languages)
    whole = (
        rf"(?:{words})(?=[\"')\]]*(?:{sign}|[ \t]*\n))|{words}"  # rather a longer label than words after a short one
    )
    labels = (
        rf"(?P<box>{OPEN})|(?P<label>{whole})|(?P<heading>{headings})|(?P<weak>{alternatives('fields', languages)})"
    )
    return re.compile(labels, re.IGNORECASE), re.compile(after, re.IGNORECASE)


def _labels(text: str, task: Task) -> Iterator[_Label]:
    """Yield where every label begins, and where what follows it does."""
    labels, after = _patterns(task, tuple(LANGUAGES.values()))
    at = 0
    while match := labels.search(text, at):
        begin, at = match.span()
        if match["box"]:
            yield _Label(begin, at)
            continue
        line = text[max(text.rfind("\n", 0, begin) + 1, begin - _NEAR) : begin]
        starts = bool(_LINE_START.fullmatch(line)) or line.endswith((OPEN, CLOSE))
        if not (match["label"] or starts or _opens_sentence(line)):
            continue
        if _is_of_response(line) or _is_of_response(_line_above(text, begin)):
            continue
        follows = after.match(text, at)
        if follows and follows["about"] and not match["label"]:
            continue  # the rating of one respect
        if match["weak"] and not (follows and follows["sign"] and _value_follows(text, follows.end(), False, task)):
            continue
        if follows and (follows["sign"] or starts):
            aside = follows["aside"] if task == "ranking" or re.search(r"\d", follows["aside"] or "") else None
            at = follows.start("aside") if aside else follows.end()
            yield _Label(begin, at, weak=bool(match["weak"]))
        elif not follows and _value_follows(text, at, starts, task):
            yield _Label(begin, at)


def _line_above(text: str, begin: int) -> str:
    """Return the line that ends with a colon above a label that begins a line; nothing where there is none."""
    above, _, line = text[max(0, begin - 2 * _NEAR) : begin].rpartition("\n")
    above = above.rstrip().rpartition("\n")[2]
    return above if above.endswith(":") and not line.strip(" \t>\"'-") else ""


def _opens_sentence(line: str) -> bool:
    """Whether a sentence begins after these words, or after a connective."""
    letters = "".join(token.letter for token in tokens_of(line))
    return bool(re.search(r"(?:^|[.?])[JA,]*$", letters))


def _is_of_response(line: str) -> bool:
    """Whether these words say that a response says what follows, or the judge does not, or name one before its own."""
    letters = "".join(token.letter for token in tokens_of(line))
    return bool(re.search(r"[NHX][^.?CRJ]*[Yy][^.?CRJ]*$|Nw?$", letters))


def _value_follows(text: str, end: int, starts: bool, task: Task) -> bool:
    """Whether a verdict follows a label without any sign between: `Overall judgment Answer 1`, `Rating 4`."""
    letters = "".join(token.letter for token in tokens_of(text, end, end + 40))
    wanted = {"pairwise": "N", "pointwise": "S?[#(]" if starts else "S#", "ranking": "V?[#N]"}[task]
    return bool(re.match(wanted, letters))


def _quotes(text: str, labels: Sequence[_Label]) -> list[Span]:
    """Return the quotations in which something is stated, but for labels and verdicts that stand in quotes alone."""
    spans = [match.span() for match in (*_QUOTE.finditer(text), *_BLOCK.finditer(text))]
    values = {label.value for label in labels}
    return [span for span in spans if not _is_own(text, span, labels, values)]


def _is_own(text: str, span: Span, labels: Sequence[_Label], values: set[int]) -> bool:
    begin, end = span
    held = [label for label in labels if begin <= label.begin < end]
    if held and not text[begin + 1 : held[0].begin].strip() and held[0].value >= end:
        return True  # a label in quotes, such as a key
    if any(value in values for value in (begin, begin + 1)):
        return True  # the verdict after a label
    if not held and not _STATEMENT.search("".join(token.letter for token in tokens_of(text, begin, end))):
        return True
    before, after = text[:begin].rstrip(), text[end:].strip(" \t\n.")
    line_start = not text[text.rfind("\n", 0, begin) + 1 : begin].strip()
    return line_start and not after and not before.endswith((":", ","))


def _unquoted(tokens: Sequence[Token], quotes: Sequence[Span]) -> tuple[Token, ...]:
    """Return tokens with one word in the place of every quotation."""
    kept: list[Token] = []
    last = None
    for token in tokens:
        quote = next((span for span in quotes if span[0] <= token.span[0] < span[1]), None)
        if quote is None:
            kept.append(token)
        elif quote != last:
            kept.append(Token("w", token.span))
        elif token.letter in ".?":
            kept.append(token)
        last = quote
    return tuple(kept)

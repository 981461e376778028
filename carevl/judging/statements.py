"""What a sentence says of responses: words become letters by the tables of languages, and patterns of letters are read.

| letter | stands for | letter | stands for |
|---|---|---|---|
| N | a response | #, o, f | a number in digits, in words, an ordinal number |
| B, b, M | better, good beside another one, better in some respect | W | worse |
| E, e | a tie, or what is one under a label | X, x | a negation, a word for a wrong response |
| I, G | is, has | T | than |
| P, K | what a better response, a rating follows | H, A | a response without its number, a filler |
| R, C, J | because, but, therefore | Q | if, whether |
| O, F | and, then | Y, y, L, Z | says, contains, in, like |
| S, U, D | noun of a rating, its unit, out of | V | noun of a ranking |
| w | any other word | . ? , : and others | themselves; a line break is n |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from carevl.judging.languages import LANGUAGES, Language
from carevl.judging.mapped_text import Span
from carevl.judging.markup import CLOSE, OPEN

_LETTERS = (
    ("N", "names"),
    ("E", "equal"),
    ("P", "prefer"),
    ("K", "rate"),
    ("J", "therefore"),
    ("e", "alike"),
    ("C", "but"),
    ("M", "more"),
    ("B", "better"),
    ("W", "worse"),
    ("b", "good"),
    ("H", "nouns"),
    ("A", "fillers"),
    ("X", "not_"),
    ("x", "wrong"),
    ("D", "out_of"),
    ("Q", "if_"),
    ("I", "is_"),
    ("T", "than"),
    ("Y", "claims"),
    ("y", "holds"),
    ("Z", "like"),
    ("R", "because"),
    ("F", "then"),
    ("O", "and_"),
    ("G", "gives"),
    ("S", "ratings"),
    ("V", "rankings"),
    ("U", "points"),
    ("L", "in_"),
)
"""Where several fit, the first one in this order; the longest first would need every form to be written out."""
_BEFORE, _AFTER = r"(?<![a-zà-ÿ])", r"(?![a-zà-ÿ])"
_DIGITS = r"\d+(?!\.?\d)"
_OTHER = (
    r"(?P<nth>\d+(?:st|nd|rd|th)(?![a-z]))|(?P<number>(?<![\w)])-\d+(?:\.\d+)?|\d+(?:\.\d+)?)"
    r"|(?P<stop>[.!](?=[\s\"')\]]|$))|(?P<word>[a-zà-ÿ_][a-zà-ÿ0-9_'\-]*|(?<=[a-z0-9])'[a-z]{1,2}(?![a-z]))"
    r"|(?P<line>\n)|(?P<blank>[\"'`]|[^\S\n]+)|(?P<sign>.)"
)
_SIGNS = {
    "-": ",",
    ";": ",",
    "[": "(",
    "]": ")",
    "{": "(",
    "}": ")",
    "|": ",",
    "&": "O",
    "!": ".",
    OPEN: "n",
    CLOSE: "n",
}


@dataclass(frozen=True)
class Token:
    """A word, or several that mean one thing. `value` is the number of a response, or a number; `span` is its place."""

    letter: str
    span: Span
    value: float = 0.0


@dataclass(frozen=True)
class Sentence:
    """Tokens of one sentence, without the mark that ends it, and that mark: `.`, `?`, `n` (a line's end) or nothing."""

    tokens: tuple[Token, ...]
    end: str = ""

    @property
    def letters(self) -> str:
        """One letter per token."""
        return "".join(token.letter for token in self.tokens)


@dataclass(frozen=True)
class Stated:
    """What a sentence says of responses shown.

    `better`, `partly` (in some respect) and `not_better` are tokens of responses; `tie`: they are alike, or the judge
    is undecided; `open`: only under a condition, or of a response that was not shown.
    """

    better: tuple[Token, ...] = ()
    partly: tuple[Token, ...] = ()
    not_better: tuple[Token, ...] = ()
    tie: bool = False
    open: bool = False
    opening: bool = False
    """Whether nothing but a connective or a clause of reason stands before `better`."""


def alternatives(field: str, languages: Sequence[Language] | None = None) -> str:
    """Return the expression of a field's words in all languages; it matches nothing where there are none."""
    words = [word for language in languages or tuple(LANGUAGES.values()) for word in getattr(language, field)]
    return rf"{_BEFORE}(?:{'|'.join(words)}){_AFTER}" if words else r"(?!)"


@lru_cache(maxsize=8)
def _lexer(languages: tuple[Language, ...]) -> tuple[re.Pattern[str], tuple[re.Pattern[str], ...], dict[str, int]]:
    """Return the expression of all words, those of names with their numbers, and what words for numbers are worth.

    Ordinal numbers are worth less than nothing there, to tell them from the others.
    """
    names: list[str] = []
    worth: dict[str, int] = {}
    for language in languages:
        words = "|".join(language.numbers)
        n = rf"(?P<n>{_DIGITS}{'|' if words else ''}{words})"
        nth = rf"(?P<n>{'|'.join(language.ordinals) or '(?!)'})"
        names += [name.replace("{n}", n).replace("{nth}", nth) for name in language.names]
        for sign, forms in ((1, language.numbers), (-1, language.ordinals)):
            worth |= {form: sign * i for i, group in enumerate(forms, 1) for form in group.split("|")}
    kinds = []
    for letter, field in _LETTERS:
        bare = "|".join(name.replace("(?P<n>", "(?:") for name in names) or "(?!)"
        words = rf"{_BEFORE}(?:{bare})(?![a-zà-ÿ0-9_])" if field == "names" else alternatives(field, languages)
        kinds.append(f"(?P<{'x' if letter.islower() else ''}{letter}>{words})")
    whole = re.compile("|".join([*kinds, _OTHER]), re.IGNORECASE)
    return whole, tuple(re.compile(name, re.IGNORECASE) for name in names), worth


def tokens_of(text: str, begin: int = 0, end: int | None = None) -> list[Token]:
    """Return the words in a part of a text, blanks and quotes left out."""
    return list(_tokens(text, begin, len(text) if end is None else end))


def sentences(tokens: Iterable[Token]) -> list[Sentence]:
    """Return the sentences that have any words, without commas and dashes around them."""
    result: list[Sentence] = []
    open_: list[Token] = []
    for token in [*tokens, None]:
        if token is not None and token.letter not in _ENDS:
            open_.append(token)
            continue
        words = "".join(each.letter for each in open_)
        begin, end = len(words) - len(words.lstrip(",")), len(words.rstrip(","))
        if begin < end:
            result.append(Sentence(tuple(open_[begin:end]), token.letter if token else ""))
        open_ = []
    return result


def _tokens(text: str, begin: int, end: int) -> Iterator[Token]:
    lexer, names, worth = _lexer(tuple(LANGUAGES.values()))
    at = begin
    while at < end and (match := lexer.match(text, at, end)):
        kind, words, span = match.lastgroup or "", match[0], match.span()
        at = max(match.end(), at + 1)
        if kind == "N":
            number = next(name_match for name in names if (name_match := name.fullmatch(words)))
            begins, ends = number.span("n")
            yield Token("N", (span[0] + begins, span[0] + ends), _worth(number["n"], worth))
        elif kind == "number":
            yield Token("#", span, float(words))
        elif kind == "nth":
            yield Token("f", span, float(words[:-2]))
        elif kind in ("word", "sign") and words.lower() in worth:
            yield Token("f" if worth[words.lower()] < 0 else "o", span, _worth(words, worth))
        elif kind == "sign":
            if words.isascii() or words.isalnum() or words in _SIGNS:
                yield Token("w" if words.isalnum() else _SIGNS.get(words, words), span)
        elif kind != "blank":
            yield Token(_PLAIN.get(kind, kind[-1]), span)


def _worth(words: str, worth: Mapping[str, int]) -> float:
    return float(words) if words.isdecimal() else float(abs(worth[words.lower()]))


_ENDS = ".?n"
_PLAIN = {"stop": ".", "word": "w", "line": "n"}
_GAP = r"(?:Iw[FO]|[IAHJX]|,[^,:?N#]{1,30},|,(?=I)|\([^()N]*\))*"
_WHOLE = r"B(?!T[AHI]*NL.*C[^N]*W)(?=[HAJ]*(?:$|[,()RCONEeF>]|:(?=[Aw])|T[AHI]*(?:[N#of]|(?<=H)|$)))"
_PARTLY = r"M|GA*[BM]|B(?=[HA]*L|T[AHI]*NL.*C[^N]*W)"
_SUBJECT = re.compile(
    rf"(?P<who>N)(?P<gap>(?:[XAI]*T[AHI]*N|[IA]*NT)?{_GAP})(?:(?P<whole>{_WHOLE})|(?P<part>{_PARTLY})|W)"
)
_COMPARED = re.compile(r"(?P<who>N)(?P<gap>[XAI]*T[AHI]*NA*)(?P<whole>b)(?=$|[,()RCJ])")
_PREFERRED = re.compile(r"P(?P<gap>[AIJHX,:]*)(?P<who>N(?=$|[,()RCOTLJ])|#(?=$|[,R]))")
_ASIDE = re.compile(r",[^,]*,|\([^()]*\)")
_REPORTED = re.compile(r"(?:YN|RN[^,]*Y[^,]*),$")
_RESET = re.compile(r".*[,CRJ]")
_TAKEN_BACK = re.compile(r"C[AHI]*X$")


def state(sentence: Sentence, shown: int) -> Stated:
    """Return what a sentence says of the responses that were shown; what it gives as a reason does not count."""
    letters = sentence.letters
    better: list[Token] = []
    partly: list[Token] = []
    not_better: list[Token] = []
    opens, is_open, end = True, sentence.end == "?", len(letters)
    matches = [match for pattern in (_SUBJECT, _COMPARED, _PREFERRED) for match in pattern.finditer(letters)]
    for match in sorted(matches, key=lambda each: each.start()):
        if match.start() >= end:
            break
        subject, before = sentence.tokens[match.start("who")], letters[: match.start()]
        near = _RESET.sub("", before)
        whole = match.groupdict().get("whole") or match.re is _PREFERRED
        if _REPORTED.search(before) or re.search("Y|N.*y|N[OF/]$", near):
            is_open = True  # a response says so itself, or it is said of two at once
        elif "X" in near or "X" in _ASIDE.sub("", match["gap"]) or not (whole or match["part"]):
            not_better.append(subject)
        elif subject.value not in range(1, shown + 1):
            is_open = True
        elif whole:
            better.append(subject)
            opens &= bool(re.fullmatch("[AIHJP:]*", near)) and before[:1] != "L" and ":" not in before.lstrip("JA")[1:]
        else:
            partly.append(subject)
        reason = letters.find("R", match.end())
        end = reason if reason >= 0 else end
    said = re.sub("XA*e", "X", letters[:end])
    apart = bool(better or partly) and ("C" in said or ("E" not in said and "," in said))
    tie = ("E" in said or "e" in said) and not apart
    is_open |= "Q" in said or bool(_TAKEN_BACK.search(said))
    return Stated(tuple(better), tuple(partly), tuple(not_better), tie, is_open, opens and bool(better))


def states_tie(sentence: Sentence) -> bool:
    """Whether a sentence states a tie without a label: it does so in as many words."""
    return "E" in sentence.letters

"""How the sentences of a verdict are read, task by task."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from carevl.judging.labels import Passage
from carevl.judging.mapped_text import Span
from carevl.judging.prompts import Task
from carevl.judging.statements import Sentence, Stated, Token, sentences, state, states_tie

Value = float | tuple[int, ...]
BEST = 5


@dataclass(frozen=True)
class Clause:
    """What a sentence states: a value and where it stands; else a tie, contradicting verdicts, none, or half of one.

    `finished`: whether nothing that might follow could change it.
    """

    kind: Literal["value", "tie", "both", "none", "cut"]
    value: Value | None = None
    span: Span | None = None
    finished: bool = False


_NONE, _TIE, _BOTH, _CUT = Clause("none"), Clause("tie"), Clause("both"), Clause("cut")


def read_passage(passage: Passage, task: Task, shown: int, truncated: bool) -> Clause | None:
    """Return what stands under a label; None where nothing of a verdict does."""
    cut = truncated and passage.last
    if task == "ranking" and (clause := _listed(passage.tokens, shown)):
        return clause
    parts = _without_marker(sentences(passage.tokens), passage)
    if not parts:
        return _CUT if cut else None
    clause = _READERS[task](parts[0], shown)
    if cut and len(parts) == 1 and not parts[0].end and not (clause and clause.finished):
        return _CUT
    if clause is None:
        return _CUT if cut else read_unlabelled(parts, task, shown)
    later = [_plainly(part, task, shown) for part in parts[1:]]
    if not clause.finished and task == "pairwise":
        later += [_bare(part, shown) for part in parts[1:] if re.fullmatch("A*N", part.letters)]
    if clause.kind == "value" and any(each and each.value != clause.value for each in later):
        return _BOTH
    return clause


def read_unlabelled(parts: Sequence[Sentence], task: Task, shown: int) -> Clause | None:
    """Return what the last sentence states, if it states one verdict in full and no other sentence another."""
    if not parts:
        return None
    *others, last = parts
    clause = _plainly(last, task, shown)
    if clause is None and not others and task == "pairwise" and re.fullmatch("A*N", last.letters):
        clause = _bare(last, shown)
    if clause is None:
        return _TIE if states_tie(last) else None
    if clause.kind == "value":
        stated = [_stated(part, task, shown) for part in others]
        if any(value is not None and value != clause.value for values in stated for value in values):
            return None
    return clause


def _without_marker(parts: list[Sentence], passage: Passage) -> list[Sentence]:
    """Leave out the number that begins a list: `1. Answer 2 names the book.`"""
    if len(parts) < 2 or parts[0].letters != "#" or parts[0].end != ".":
        return parts
    number, following = parts[0].tokens[0], parts[1].tokens[0]
    on_one_line = "\n" not in passage.source.text[number.span[1] : following.span[0]]
    is_list = following.letter == "N" or any(part.letters == "#" for part in parts[1:])
    return parts[1:] if on_one_line and is_list else parts


def _plainly(sentence: Sentence, task: Task, shown: int) -> Clause | None:
    """Return the value or tie that a sentence states in full, without a label."""
    if task == "pairwise":
        if re.fullmatch("[AJ,]*N,?>+N", sentence.letters):
            return _pairwise(sentence, shown)
        stated = state(sentence, shown)
        values = {token.value for token in stated.better}
        sure = stated.opening and len(values) == 1 and not (stated.open or stated.tie)
        if not sure or any(token.value in values for token in stated.not_better):
            return None
        return Clause("value", int(stated.better[0].value), stated.better[0].span)
    if task == "pointwise":
        return _rating(sentence, shown, labelled=False)
    return _ranking(sentence, shown, labelled=False)


def _stated(sentence: Sentence, task: Task, shown: int) -> list[Value | None]:
    """Return all that speaks against another verdict than the last sentence's; nan is a tie or a negation of it."""
    if task != "pairwise":
        clause = _plainly(sentence, task, shown)
        return [] if clause is None else [clause.value]
    stated = state(sentence, shown)
    if stated.open:
        return []
    values: list[Value | None] = [token.value for token in stated.better]
    values += [shown + 1 - token.value for token in stated.not_better if shown == 2]
    return values + ([0.0] if states_tie(sentence) else [])


_ORDERED = re.compile(r"[AJHI,:(]*(?P<a>[N#])(?P<sign>,?>+|<+|=+)A*(?P<b>[N#])(?=$|[,()RC])")
_BARE = re.compile(r"[AJH,:(]*(?P<n>[N#])\)*(?=$|R|\(|,[RC]|C|TH*N?$|AI$)")


def _pairwise(sentence: Sentence, shown: int) -> Clause | None:
    if ordered := _ORDERED.match(sentence.letters):
        return _compared(ordered["sign"][-1], [sentence.tokens[ordered.start(group)] for group in "ab"])
    stated = state(sentence, shown)
    values, negated = ({token.value for token in tokens} for tokens in (stated.better, stated.not_better))
    if stated.tie:
        return _TIE
    if stated.open or values & negated or (negated and not values):
        return _NONE
    if values:
        token = stated.better[0]
        return Clause("value", int(token.value), token.span, finished=True) if len(values) == 1 else _BOTH
    return _bare(sentence, shown) or _in_part(sentence, stated)


def _compared(sign: str, compared: Sequence[Token]) -> Clause:
    """Return the verdict in `Answer 1 > Answer 2`."""
    if {token.value for token in compared} != {1.0, 2.0}:
        return _NONE
    better = compared[1 if sign == "<" else 0]
    return _TIE if sign == "=" else Clause("value", int(better.value), better.span)


def _in_part(sentence: Sentence, stated: Stated) -> Clause | None:
    """Return the verdict for what is better in some respect, unless another response is so in another one."""
    values = {token.value for token in stated.partly}
    if not values:
        return None
    others = {token.value for token in sentence.tokens if token.letter == "N"} - values
    if len(values) > 1 or ("C" in sentence.letters and others):
        return _NONE
    return Clause("value", int(stated.partly[0].value), stated.partly[0].span)


def _bare(sentence: Sentence, shown: int) -> Clause | None:
    """Return the verdict of a sentence that does no more than name a response."""
    match = _BARE.match(sentence.letters)
    if not match:
        return None
    token = sentence.tokens[match.start("n")]
    rest = sentence.letters[match.end() :]
    if not rest.startswith(("R", ",R")) and re.search(r"[NXWEe#]", rest.removeprefix("T") if rest[:1] != "T" else ""):
        return None
    return Clause("value", int(token.value), token.span) if token.value in range(1, shown + 1) else _NONE


_SCALE = r"\(?[ALDw]{0,5}#[,T]#\)?[,:]+"
_RATED = re.compile(
    rf"(?:S{_SCALE}|SD|[AGLSKJPI,:(f])*?(?P<n>[#o])\)*U?(?P<of>(?:/|,?\(?D)[A(]*U?A*(?P<best>[#o])?U?\)?)?(?P<rest>.*)$"
)


def _rating(sentence: Sentence, _: int, *, labelled: bool = True) -> Clause | None:
    letters = sentence.letters
    match = _RATED.match(letters)
    if not match or sentence.end == "?":
        return None
    rating, rest = sentence.tokens[match.start("n")], match["rest"]
    best = sentence.tokens[match.start("best")].value if match["best"] else None
    known = bool(re.search("[SK]", letters[: match.start("n")])) or best == BEST
    if not known and (not labelled or re.match("[^,(:RCZ]", rest)):
        return None  # a number of something else
    unsure = re.match(r"[~%<>=/+OQ]|[,TF]A*[#o]|,Q", rest) or (match["of"] and best is None and "/" in match["of"])
    if unsure or best not in (None, BEST) or not 1 <= rating.value <= BEST:
        return _NONE if labelled else None
    return Clause("value", rating.value, rating.span, finished=bool(best))


_JOIN = r"(?:\([^()N#]*\))?(?:,?>+|<+|=+|,[FO]?|F|O|I?BT)A*"
_CHAIN = re.compile(rf"[N#](?:{_JOIN}[N#])+")
_PLACED = re.compile(r"[AJH,:(]*(?:(?P<first>B)|(?P<place>f)|(?P<last>W))[H]?[:I,]*(?P<who>N)")


def _ranking(sentence: Sentence, shown: int, *, labelled: bool = True) -> Clause | None:
    letters = sentence.letters
    chains = list(_CHAIN.finditer(letters))
    if not chains:
        return None
    [chain, *more] = chains
    before, signs = letters[: chain.start()], {_kind(join) for join in re.split("[N#]", chain.group())[1:-1]}
    items = [token for token in sentence.tokens[chain.start() : chain.end()] if token.letter in "N#"]
    if not labelled and (signs != {">"} or not re.fullmatch("[AJIV,:]*", before)):
        return None
    backwards = "<" in signs
    doubtful = more or re.search("[XZQ]", before) or sentence.end == "?" or len(signs - {"="}) > 1
    if doubtful or ("W" in letters and not re.search("B.*W", letters)):
        return _NONE
    return _TIE if "=" in signs else _order(items[::-1] if backwards else items, shown)


def _kind(join: str) -> str:
    """Return how two responses of a ranking are joined: `>`, `<`, `=`, or a comma for all words that list them."""
    return next((sign for sign in "><=" if sign in re.sub(r"\([^()]*\)", "", join)), ",")


def _order(items: Sequence[Token], shown: int) -> Clause:
    """Return the ranking of responses, if it names every one of them once."""
    order = tuple(int(token.value) for token in items)
    if sorted(token.value for token in items) != list(range(1, shown + 1)):
        return _NONE
    span = min(token.span[0] for token in items), max(token.span[1] for token in items)
    return Clause("value", order, span, finished=True)


def _listed(tokens: Sequence[Token], shown: int) -> Clause | None:
    """Return a ranking in lines or places: `1. Answer 3`, `2nd: Answer 1`."""
    letters = "".join(token.letter for token in tokens)
    numbered = list(re.finditer(r"(?:^|(?<=n))(?P<place>#)[.):]*A*(?P<who>N)", letters))
    placed = list(_PLACED.finditer(letters))
    for matches in (numbered, placed):
        if len(matches) == shown:
            places = [_place(match, tokens, shown) for match in matches]
            if sorted(places) != list(range(1, shown + 1)):
                return _NONE
            items = [tokens[match.start("who")] for match in matches]
            return _order(
                [item for _, item in sorted(zip(places, items, strict=True), key=lambda each: each[0])], shown
            )
    return None


def _place(match: re.Match[str], tokens: Sequence[Token], shown: int) -> float:
    if match["place"]:
        return tokens[match.start("place")].value
    return 1.0 if match["first"] else float(shown)


_READERS: dict[Task, Callable[[Sentence, int], Clause | None]] = {
    "pairwise": _pairwise,
    "pointwise": _rating,
    "ranking": _ranking,
}

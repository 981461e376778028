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
    return _read_sentences(parts, task, shown, cut)


def _read_sentences(parts: Sequence[Sentence], task: Task, shown: int, cut: bool) -> Clause | None:
    first, *others = parts
    clause = _READERS[task](first, shown)
    if cut and not (others or first.end or (clause and clause.finished)):
        return _CUT
    if clause is None:
        return _CUT if cut else read_unlabelled(parts, task, shown)
    if clause.kind == "tie" and not states_tie(first) and (cut or _finds_better(others, task, shown)):
        return _CUT if cut else _read_sentences(others, task, shown, cut)  # "Both are right. Answer 2 is better."
    later = [_plainly(part, task, shown) for part in others]
    if not clause.finished and task == "pairwise":
        later += [_bare(part, shown) for part in others if re.fullmatch("A*N", part.letters)]
    if clause.kind in ("value", "tie") and any(each and each.value != clause.value for each in later):
        return _BOTH
    return clause


def _finds_better(parts: Sequence[Sentence], task: Task, shown: int) -> bool:
    return task == "pairwise" and any(each.better or each.partly for each in (state(part, shown) for part in parts))


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
    contrasted = "C" in sentence.letters and (others or "W" in sentence.letters)
    if len(values) > 1 or contrasted or re.search("[OF,]A*NL", sentence.letters):
        return _NONE
    return Clause("value", int(stated.partly[0].value), stated.partly[0].span)


def _bare(sentence: Sentence, shown: int) -> Clause | None:
    """Return the verdict of a sentence that does no more than name a response."""
    match = _BARE.match(sentence.letters)
    if not match:
        return None
    token = sentence.tokens[match.start("n")]
    rest = sentence.letters[match.end() :]
    if not rest.startswith(("R", ",R", "T")) and re.search("[NXxWEe#]", rest):
        return None
    return Clause("value", int(token.value), token.span) if token.value in range(1, shown + 1) else _NONE


_SCALE = r"S?\([ALDUw,]{0,5}(?:#[,T])?(?P<most>#)U?[^()]*\)[,:]+|S[ALDw]{0,5}#[,T](?P<to>#)[,:]+"
_RATED = re.compile(
    rf"(?:{_SCALE})?(?:SD|[AGLSKJPI,:(f])*?(?P<n>[#o])\)*U?"
    r"(?P<of>(?:/|,?\(?D)[A(]*U?A*(?:#[,T](?=#))?(?P<best>[#o])?(?:,?U)?\)?)?(?P<rest>.*)$"
)
_UNSURE = re.compile(r"[~%<>=/+OQ#o]|[,TF]A*[#o]|,>|,Q|\([^()]*#[,T]#|\(#U\)")
"""After a rating: it is one end of a range, of a change or of another scale."""


def _rating(sentence: Sentence, _: int, *, labelled: bool = True) -> Clause | None:
    letters = sentence.letters
    match = _RATED.match(letters)
    if not match or sentence.end == "?":
        return None
    rating, rest = sentence.tokens[match.start("n")], match["rest"]
    tops = [sentence.tokens[match.start(end)].value for end in ("most", "to", "best") if match[end]]
    noun = bool(re.search("[SK]", letters[: match.start("n")]))
    counted = re.match("U?w" if noun else "[^,(:RCZ]", rest) and not (match["of"] or "").startswith("/")
    if counted or not (noun or labelled or (match["best"] and tops[-1] == BEST)):
        return None  # a number of something else
    unsure = _UNSURE.match(rest) or (match["of"] and not match["best"] and "/" in match["of"])
    if unsure or any(top != BEST for top in tops) or not 1 <= rating.value <= BEST:
        return _NONE if labelled else None
    return Clause("value", rating.value, rating.span, finished=bool(match["best"]))


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
    listed = "," in signs and re.match(r"\)*A*[^,(RA)]", letters[chain.end() :])  # something is said of all of them
    doubtful = more or listed or re.search("[XZQ]", before) or sentence.end == "?" or len(signs - {"="}) > 1
    if doubtful or ("W" in letters and not re.search("B.*W", letters)):
        return _NONE
    return _TIE if "=" in signs else _order(items[::-1] if backwards else items, shown)


def _kind(join: str) -> str:
    """Return how two responses of a ranking are joined: `>`, `<`, `=`, `B` (better than), or a comma for a list."""
    return next((sign for sign in "><=B" if sign in re.sub(r"\([^()]*\)", "", join)), ",")


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

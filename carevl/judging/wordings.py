"""A judge's own wording of a verdict, as its settings give it: `[[{verdict}]]`, `Winner: {verdict}`.

{verdict} is one word: a letter or a number, which is a position (A and 1 are the first response shown), or a rating; in
a ranking all positions, best first, `B > A > C` or BAC. `Response B` is B as well. Blanks and case around it do not
count. Of two responses C is a tie, as are the words for one. Nothing in an expression repeats but blanks and the
positions of a ranking, so that no text makes a search slow.
"""

from __future__ import annotations

import re
from functools import lru_cache

from carevl.judging.clauses import BEST, Clause, Value
from carevl.judging.languages import LANGUAGES
from carevl.judging.markup import Plain
from carevl.judging.prompts import Task
from carevl.judging.statements import alternatives

PLACE = "{verdict}"


def read_wording(plain: Plain, wording: str, task: Task, shown: int, truncated: bool) -> list[tuple[int, Clause]]:
    """Return where verdicts in a judge's own wording begin, in characters of `plain.norm`, and what each says."""
    pattern, suffix = _pattern(wording, task, shown, tuple(LANGUAGES))
    found: list[tuple[int, Clause]] = []
    if pattern is None:
        return found
    for match in pattern.finditer(plain.norm.text):
        open_ended = not suffix and not plain.norm.text[match.end() :].strip()
        if truncated and open_ended:
            found.append((match.start(), Clause("cut")))
        elif match["verdict"] is None:
            found.append((match.start(), Clause("tie")))
        else:
            found.append((match.start(), _clause(match["verdict"], match.span("verdict"), task, shown)))
    return found


def _clause(words: str, span: tuple[int, int], task: Task, shown: int) -> Clause:
    value: Value
    if task == "pointwise":
        value = float(words)
        return Clause("value", value, span) if 1 <= value <= BEST else Clause("none")
    units = re.findall(r"\d+|(?<![A-Za-z])[A-Za-z](?![A-Za-z])", words) if not words.isalpha() else list(words)
    numbers = tuple(int(unit) if unit.isdigit() else ord(unit.upper()) - ord("A") + 1 for unit in units)
    if task == "ranking":
        return Clause("value", numbers, span) if sorted(numbers) == [*range(1, shown + 1)] else Clause("none")
    if words.upper() == "C" and shown == 2:
        return Clause("tie")
    return Clause("value", numbers[0], span) if numbers[0] in range(1, shown + 1) else Clause("none")


@lru_cache(maxsize=16)
def _pattern(wording: str, task: Task, shown: int, _languages: tuple[str, ...]) -> tuple[re.Pattern[str] | None, str]:
    """Return the expression of a wording, None where it is nothing but markup, and what stands behind its verdict."""
    prefix, suffix = (part.strip() for part in Plain.of(wording).norm.text.split(PLACE))
    if not prefix and not suffix:
        return None, ""
    name = rf"(?i:(?:the\s+)?(?:{alternatives('nouns')}|assistant|model)\s*)?"
    letters = f"A-{chr(ord('A') + max(shown, 3) - 1)}"
    position = rf"(?:[{letters}](?!\w)|[{letters.lower()}](?!\w|\s+\w)|\d+(?![\w.]*\w))"
    if task == "pointwise":
        another = rf"(?i:{alternatives('and_')}|{alternatives('then')}|[-/~+])"
        best = rf"(?:\s*(?:/|(?i:{alternatives('out_of')}))\s*{BEST}(?!\w))?"
        verdict = (
            rf"(?P<verdict>\d+(?:\.\d+)?){best}(?![\w%]|\.\d|\s*(?:{another})\s*\d|\s*(?i:{alternatives('out_of')}))"
        )
    elif task == "ranking":
        verdict = (
            rf"(?P<verdict>{name}{position}(?:\s*(?:>+|,|->)\s*{name}{position})+|[{letters}]{{{shown}}}(?!\w))"
            r"(?!\s*[=~])"
        )
    else:
        another = (
            rf"\s*(?:[/&=,+|]|(?i:{alternatives('and_')}))\s*{name}[{letters[0]}-{chr(64 + shown)}1-{shown}](?!\w)"
        )
        tie = rf"(?i:(?:an?\s+)?(?:{alternatives('equal')}|{alternatives('alike')}|both(?!\w)))"
        verdict = rf"(?:{tie}|{name}[\"'(]*(?P<verdict>{position})(?!{another}))"
    before = r"(?<!\w)" if prefix[:1].isalnum() or not prefix else ""
    begin, end = (rf"{_literal(prefix)}\s*" if prefix else ""), (rf"\s*{_literal(suffix)}" if suffix else "")
    return re.compile(f"{before}{begin}{verdict}{end}"), suffix


def _literal(words: str) -> str:
    """Return the expression of words of a wording: blanks between them are any or none."""
    return "(?i:" + r"\s*".join(map(re.escape, words.split())) + ")"

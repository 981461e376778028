"""What models answer where a source has no responses: which answers are faulty, and which say the same.

```python
find_fault("I'm sorry, but I can't help with that.", "What is it?")   # "refusal"
same_answer(words_of("Two circles."), words_of("2 circles"), 0.05)    # True
```
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Literal

from carevl.judging.scripts import UNSPACED

Fault = Literal["empty", "cut", "refusal", "echo", "script"]
"""Empty; cut at the most tokens; a refusal; the question once more; written in another script than the question."""

_ARTICLES = {"a", "an", "the"}
_NUMBERS = {
    word: str(n)
    for n, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    )
}
_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+(?:['’][^\W{UNSPACED}]+)*")
_REFUSAL = re.compile(
    r"\s*(?:(?:i['’]?m|i am|we are|we['’]re)?\s*(?:very |really |so )?(?:sorry|afraid|unable to (?:assist|help|comply))"
    r"|(?:unfortunately,?\s+)?i\s*(?:can['’]?t|cannot|can not|won['’]?t|will not|am not able to|am unable to)\s+"
    r"(?:assist|help|comply|fulfil|provide|answer|discuss|do that|process images|view images|see images)"
    r"|as an? (?:ai|artificial|language|assistant)"
    r"|(?:非常|很)?(?:抱歉|对不起|遗憾)|作为(?:一个|一名)?(?:ai|人工智能|语言模型)|我(?:无法|不能)(?:回答|提供|协助|帮助)"
    r"|es tut mir leid|je suis désolée?|lo siento|mi dispiace|desculpe|申し訳|すみません|죄송)",
    re.IGNORECASE,
)
_MORE_THAN_ECHO = 2
"""Words beside the question from which an answer says something of its own."""


def words_of(text: str) -> tuple[str, ...]:
    """Return the words by which two answers are compared: folded, without articles, numbers up to twelve as digits."""
    words = (match[0] for match in _WORD.finditer(unicodedata.normalize("NFKC", text).casefold()))
    return tuple(_NUMBERS.get(word, word) for word in words if word not in _ARTICLES)


def same_answer(first: Sequence[str], second: Sequence[str], min_difference: float) -> bool:
    """Return whether two answers, as words, differ in less than a share of their words, or in none."""
    if first == second:
        return True
    most = 2 * min(len(first), len(second)) / max(len(first) + len(second), 1)
    return 1 - most < min_difference and 1 - SequenceMatcher(None, first, second, False).ratio() < min_difference


def find_fault(text: str, question: str, *, truncated: bool = False) -> Fault | None:
    """Return what is wrong with an answer, without a look at whether it is true; None where nothing is."""
    words = words_of(text)
    if not words:
        return "empty"
    if truncated:
        return "cut"
    if _REFUSAL.match(text):
        return "refusal"
    asked = words_of(question)
    if asked and _contains(words, asked) and len(words) - len(asked) < _MORE_THAN_ECHO:
        return "echo"
    if len(words) > 1 and (own := _script(question)) and (other := _script(text)) and own != other:
        return "script"
    return None


def states(words: Sequence[str], answer: str) -> bool:
    """Return whether an answer, as words, gives a reference answer.

    It does where both are equal, where it begins with it (`Yes, there is.` for `yes`), and where a reference of
    something else than yes or no stands in it.
    """
    stated = words_of(answer)
    if not stated or not words:
        return False
    if tuple(words[: len(stated)]) == stated:
        return True
    return stated not in (("yes",), ("no",)) and _contains(words, stated)


def _contains(words: Sequence[str], part: Sequence[str]) -> bool:
    return any(tuple(words[n : n + len(part)]) == tuple(part) for n in range(len(words) - len(part) + 1))


def _script(text: str) -> str | None:
    """Return the script of most letters of a text, as Unicode names begin; None without letters."""
    letters = Counter(unicodedata.name(letter, "").split(" ")[0] for letter in text[:2000] if letter.isalpha())
    # Chinese, and Japanese with it, is one script here: titles of either mix them.
    counts: Counter[str] = Counter()
    for name, count in letters.items():
        counts["CJK" if name in ("HIRAGANA", "KATAKANA") else name] += count
    return counts.most_common(1)[0][0] if counts else None

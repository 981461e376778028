"""How many judgments were asked for, came, and have a verdict that can be read: counted alike wherever one is asked.

```python
counts = VerdictCounts()
counts.add("pairwise", "Overall Judgment: Answer 1 is better.", "ok")
counts.add("pairwise", "I cannot tell.", "none")
counts.line()  # "2 asked, 2 answered, 1 parsed (50.0 %): 1 ok, 1 none (1 states a tie)"
```
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from carevl.judging.verdicts import Status, read_verdict

STATUSES: tuple[Status, ...] = get_args(Status)
FEW = 0.9
"""Share of the judgments that came below which unread ones are worth a warning."""
_SAMPLES = 3
_BEGINNING, _END = 40, 80


@dataclass
class VerdictCounts:
    """Counts of judgments that should have a verdict.

    `statuses` counts those that came, as the reader has it; `ties` those among its `none` that state a tie, or that the
    judge cannot decide; `forced` those among its `ok` that were cut and asked for their verdict apart. `unread` holds a
    few of the others without a verdict: status and text, shortened and quoted.
    """

    asked: int = 0
    answered: int = 0
    statuses: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUSES, 0))
    ties: int = 0
    forced: int = 0
    unread: list[str] = field(default_factory=list)

    def add(
        self,
        task: str,
        text: str,
        status: str,
        *,
        failed: bool = False,
        tie: bool | None = None,
        wording: str | None = None,
        forced: bool = False,
    ) -> None:
        """Count a judgment.

        Args:
            failed: whether the judge could not be asked; then there is no text.
            tie: whether it states a tie; read in a pairwise text without a verdict when None.
            wording: the judge's own of a verdict.
            forced: whether it was cut, and its verdict asked for apart.
        """
        self.asked += 1
        if failed:
            return
        self.answered += 1
        self.statuses[status] += 1
        if status == "ok":
            self.forced += forced
            return
        if tie is None:
            tie = status == "none" and task == "pairwise" and read_verdict(text, wording=wording).tie
        if status == "none" and tie:
            self.ties += 1
        elif len(self.unread) < _SAMPLES and (sample := f"{status}: {quote(text)}") not in self.unread:
            self.unread.append(sample)

    @property
    def parsed(self) -> int:
        """Judgments with a verdict."""
        return self.statuses["ok"]

    @property
    def read_share(self) -> float:
        """Share of the judgments that came that say a verdict or a tie; 1 before there are any."""
        return (self.parsed + self.ties) / self.answered if self.answered else 1.0

    @property
    def facts(self) -> dict[str, Any]:
        """Everything, as a manifest and `VerdictCounts(**facts)` have it."""
        return asdict(self)

    def line(self) -> str:
        """Return the counts in one line."""
        share = f" ({self.parsed / self.asked:.1%})".replace("%", " %") if self.asked else ""
        words = [f"{n:,} {status}{self._more_words(status)}" for status, n in self.statuses.items() if n]
        return f"{self.asked:,} asked, {self.answered:,} answered, {self.parsed:,} parsed{share}" + (
            f": {', '.join(words)}" if words else ""
        )

    def _more_words(self, status: str) -> str:
        if status == "ok" and self.forced:
            return f" ({self.forced:,} forced)"
        if status != "none" or not self.ties:
            return ""
        return f" ({self.ties:,} {'states' if self.ties == 1 else 'state'} a tie)"

    def warning(self, what: str) -> list[str]:
        """Return the lines of a warning where few judgments have a verdict, a sample on each; else nothing.

        Args:
            what: name of these judgments.
        """
        if self.read_share >= FEW:
            return []
        unread = self.answered - self.parsed - self.ties
        head = f"{what}: {unread:,} of {self.answered:,} judgments have no verdict that can be read, such as"
        return [head, *(f"  {sample}" for sample in self.unread)]


def join(counts: Iterable[VerdictCounts]) -> VerdictCounts:
    """Return the counts of several kinds of judgments together."""
    total = VerdictCounts()
    for each in counts:
        total.asked += each.asked
        total.answered += each.answered
        total.ties += each.ties
        total.forced += each.forced
        for status, n in each.statuses.items():
            total.statuses[status] += n
        total.unread = list(dict.fromkeys([*total.unread, *each.unread]))[:_SAMPLES]
    return total


def describe(counts: Mapping[str, VerdictCounts]) -> list[str]:
    """Return the line of all judgments together, then a warning about each kind of which few have a verdict."""
    lines = [join(counts.values()).line()] if counts else []
    return lines + [line for name, each in counts.items() for line in each.warning(name)]


def store(counts: Mapping[str, VerdictCounts]) -> dict[str, Any]:
    """Return counts by kind as manifests keep them, under `verdicts`."""
    return {name: each.facts for name, each in counts.items()}


def stored_warnings(manifest: Mapping[str, Any]) -> list[str]:
    """Return the warnings about the judgments that a manifest counts."""
    stored: Mapping[str, Any] = manifest.get("verdicts", {})
    return [line for name, facts in stored.items() for line in VerdictCounts(**facts).warning(name)]


def quote(text: str) -> str:
    """Return a text in quotes on one line, without its middle where it is long and without what does not print."""
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    if len(words) > _BEGINNING + _END:
        words = f"{words[:_BEGINNING]} … {words[-_END:]}"
    return f'"{words}"'

"""Writes the table of heads in `docs/models.md`, measured on tiny models with random float32 weights.

python -m tests.models.head_table
"""

from __future__ import annotations

import math
import re
import sys
import tempfile
from pathlib import Path

from carevl.errors import UserError
from carevl.models.engines import scorer
from carevl.models.engines.vllm_scorer import VllmScorer
from carevl.settings.models import Expert, Pool
from tests.helpers.heads import CASES, CONVERSATIONS, REFUSED, HeadCase, RefusedCase, own_scores, write_case

DOCUMENT = Path(__file__).parents[2] / "docs/models.md"
_BEGIN, _END = "<!-- python -m tests.models.head_table -->\n", "<!-- end -->\n"
ENGINES = ("transformers", "vllm")
_MOST = 1e-4


def measure(case: HeadCase, engine: str) -> float:
    """Return the largest difference of scores in an engine from what the model's own code gives.

    NaN where it does not run in that engine.
    """
    with tempfile.TemporaryDirectory() as directory:
        write_case(case, Path(directory))
        expected = own_scores(case, Path(directory), CONVERSATIONS)
        loaded = scorer(_expert(directory, engine, **case.settings), parity_tolerance=0.05)
        scores = loaded.score(CONVERSATIONS)
        if isinstance(loaded, VllmScorer):
            loaded.close()
        elif engine == "vllm":
            return math.nan
    return max(abs(a - b) for a, b in zip(expected, scores, strict=True))


def find_words(case: RefusedCase) -> str:
    """Return the words with which a model is refused, without its path."""
    with tempfile.TemporaryDirectory() as directory:
        write_case(case, Path(directory))
        try:
            scorer(_expert(directory, "transformers"))
        except UserError as error:
            return str(error).removeprefix(f"{directory}: ").split(";")[0]
    raise AssertionError(f"{case.name} is read")


def _expert(directory: str, engine: str, **settings: object) -> Expert:
    given = {"name": "x", "path": directory, "engine": engine, "max_model_len": 512, "pool": Pool(batch_size=8)}
    return Expert.model_validate(given | settings)


def read_row(case: HeadCase, differences: dict[str, float]) -> str:
    """Return the row of a head that is read."""
    cells = [
        "runs in transformers" if math.isnan(value) else f"{value:.0e}" if value < _MOST else "WRONG"
        for value in differences.values()
    ]
    return f"| {case.name} | read | {' | '.join(cells)} |"


def refused_row(case: RefusedCase, words: str) -> str:
    """Return the row of a head that is refused."""
    return f'| {case.name} | refused: "{words}" | | |'


def table(rows: list[str]) -> str:
    """Return the table with its header."""
    return "\n".join(["| head | | transformers | vLLM |", "|---|---|---|---|", *rows]) + "\n"


def stored_table() -> str:
    """Return the table that the document has."""
    found = re.search(re.escape(_BEGIN) + "(.*?)" + re.escape(_END), DOCUMENT.read_text(), flags=re.DOTALL)
    assert found is not None
    return found[1]


def main() -> None:
    """Measure all heads, and write the document."""
    rows = []
    for case in CASES:
        rows.append(read_row(case, {engine: measure(case, engine) for engine in ENGINES}))
        print(rows[-1], file=sys.stderr, flush=True)
    rows += [refused_row(case, find_words(case)) for case in REFUSED]
    before, rest = DOCUMENT.read_text().split(_BEGIN)
    behind = rest.split(_END, 1)[1]
    DOCUMENT.write_text(before + _BEGIN + table(rows) + _END + behind)


if __name__ == "__main__":
    main()

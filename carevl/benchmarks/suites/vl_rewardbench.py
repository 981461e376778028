"""VL-RewardBench (MMInstruction/VL-RewardBench, arXiv 2411.17451): pairs in three groups.

Official prompt and scorer: github.com/vl-rewardbench/VL_RewardBench (`prompt.py`, `inference_hf.py`, `cal.py`).
Its quirks, kept under `official` and `official_scorer`:

- Each draw shows a random order; the number of draws and k are the caller's. The script draws 10 and prints
  k = 1, 3, 5, 7, 9, taking k draws of a shuffled list; here the first k, which is as random. A row with fewer draws is
  scored by those.
- Under `official` the verdict is the last match of a regular expression in the text without newlines and asterisks, so
  `Answer 2 isbetter` and `Therefore … Answer 1 is slightly better` are verdicts.
- A verdict that does not name the rejected answer agrees with the label, `Answer 3 is better` too.
- One draw without a verdict takes its row out of the denominator, however clear the others are; so does a draw of
  an even k. A judge that seldom answers is scored on the rows it answered.
- `overall` is over rows, `macro` the mean of the groups. Until 8 May 2025 POVID counted as general; here it is
  hallucination, as since then.
- The text stands before the image, and `<image>` with its newline is cut from the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from carevl.benchmarks.layouts import NO_IMAGES, Layout, own_script
from carevl.benchmarks.outcomes import pairs_right, scored_rows
from carevl.benchmarks.predictions import Prediction, draws_of
from carevl.benchmarks.questions import (
    Decoding,
    Question,
    drawn_questions,
    is_strict,
    random_order,
    strict_questions,
)
from carevl.benchmarks.rows import Record, Row, load_rows, read_images, row_key
from carevl.benchmarks.suite import Suite
from carevl.benchmarks.suites.vl_rewardbench_files import LMMS_EVAL, VLMEVALKIT
from carevl.benchmarks.suites.vl_rewardbench_published import published_table
from carevl.judging.verdicts import Verdict
from carevl.settings.data import ProtocolName
from carevl.stats.bootstrap import Scored, accuracy_statistics

GROUPS = {
    "hallucination": "hallucination",
    "RLAIF": "hallucination",
    "RLHF": "hallucination",
    "mathverse": "reasoning",
    "mmmu": "reasoning",
}
"""Id prefix (cut at the first `_` or `-`) to group; any other (WildVision, VLFeedback's sources) is general."""

_PROMPT = """ You are a highly capable multimodal AI assistant tasked with evaluating answers to visual questions. \
Please analyze the following image and question, then determine which of the two provided answers is better.

Question: {question}

Answer 1: {first}

Answer 2: {second}

Please evaluate both answers based on the following criteria:
1. Accuracy: How well does the answer align with the visual information in the image?
2. Completeness: Does the answer fully address all aspects of the question?
3. Clarity: Is the answer easy to understand and well-articulated?
4. Relevance: Does the answer directly relate to the question and the image?

After your evaluation, please:
1. Explain your reasoning for each criterion.
2. Provide an overall judgment on which answer is better (Answer 1 or Answer 2). For example: Overall Judgment: \
Answer X is better.

Your response should be structured and detailed, demonstrating your understanding of both the visual and textual \
elements of the task."""
_VERDICT = re.compile(
    r"(?:Overall Judgment|Therefore)\s*.*\s*-*\s*Answer\s*(\d+)\s*is\s*(?:the\s*)?(?:slightly\s*)?better", re.IGNORECASE
)


class VlRewardBench(Suite):
    """VL-RewardBench."""

    name = "vl-rewardbench"
    summary = "pairs about images"
    draws = 5
    decoding = Decoding(temperature=0.2, top_p=0.2, max_tokens=2048, image_first=False)
    headlines = ("overall", "macro", "general", "hallucination", "reasoning")

    def load(self, path: Path, images: Path | None = None) -> list[Row]:
        """Return the rows of a Parquet or JSONL file (or a folder); image paths begin in `images`, else beside it.

        Raises:
            ValueError: a field is missing or of another kind; the message names file, row and field.
        """
        return load_rows(path, images, read_row)

    def questions(
        self, rows: Iterable[Row], protocol: ProtocolName, *, draws: int | None = None, seed: int = 0
    ) -> Iterator[Question]:
        """Yield `draws` random orders per row for the official scorer, both orders for the strict one."""
        if is_strict(protocol):
            return strict_questions(self.name, rows, protocol)
        return drawn_questions(
            self.name, rows, protocol, draws or self.draws, partial(random_order, seed), _official_prompt
        )

    def parse(self, question: Question, text: str, *, truncated: bool = False) -> Verdict:
        """Return the verdict: by the official expression under `official`, else by our reader."""
        if question.protocol != "official":
            return super().parse(question, text, truncated=truncated)
        number = official_number(text)
        if number not in (1, 2):
            return Verdict("truncated" if truncated and number is None else "none", text)
        return Verdict("ok", text, winner=question.order[number - 1])

    def score(
        self,
        rows: Sequence[Row],
        predictions: Iterable[Prediction],
        protocol: ProtocolName,
        *,
        draws: int | None = None,
    ) -> Scored:
        """Return `overall`, `macro`, `general`, `hallucination` and `reasoning` of one judge's predictions.

        Under `official` each stored text is read anew; all else uses the stored verdicts.

        Raises:
            ValueError: a row has no prediction.
        """
        if is_strict(protocol):
            right = pairs_right(rows, predictions)
        else:
            drawn = draws_of(rows, predictions, draws or self.draws)
            right = np.array([_official_right(row, drawn[row.key], protocol) for row in rows], np.float64)
        return scored_rows(rows, right, accuracy_statistics(right, [row.group for row in rows]))

    def layouts(self) -> Sequence[Layout]:
        """Return those of the official script, of lmms-eval and of VLMEvalKit."""
        fields = ("id", "query", "response", "meta")
        own = own_script("inference_hf.py", fields, _written_row, _written_answers, split=_unwrap)
        return own, LMMS_EVAL, VLMEVALKIT

    def published(self) -> Sequence[Sequence[str]]:
        """Return scores in percent; a row that contradicts itself says so."""
        return published_table()


def read_row(record: Record, root: Path) -> Row:
    """Return one row of the file. Raises ValueError as `load` does."""
    row_id, question, responses = record.text("id"), record.text("query"), record.texts("response")
    ranks = record.get("human_ranking")
    if len(responses) != 2 or sorted(ranks) != [0, 1]:
        raise ValueError(
            f"{record.location}: expected 2 responses with ranks 0 and 1, found {len(responses)} and {ranks}"
        )
    return Row(
        key=row_key(row_id, question, *sorted(responses)),
        task="pairwise",
        group=GROUPS.get(re.split("[_-]", row_id, maxsplit=1)[0], "general"),
        question=question,
        responses=responses,
        gold=tuple(-float(rank) for rank in ranks),
        images=read_images(record.values.get("image"), root),
    )


def _unwrap(record: Record) -> Iterator[Record]:
    """Yield the record, or what it has under `0`, as the script also writes it; null where a row failed."""
    if record.values.keys() != {"0"}:
        yield record
    elif record.values["0"] is not None:
        yield record.nested("0")


def _written_row(record: Record) -> Row:
    """Return the row that the official script wrote, whose ranks are called `ranking`."""
    values = record.values | {"human_ranking": record.get("ranking", "human_ranking")}
    return read_row(Record(values, record.location), NO_IMAGES)


def _written_answers(record: Record) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yield the answer in `meta.filter_choice`; it was asked in swapped order if `meta.random_number` is 1."""
    meta = record.nested("meta")
    yield (1, 0) if meta.get("random_number") else (0, 1), meta.text("filter_choice")


def _official_prompt(row: Row, order: Sequence[int]) -> str:
    first, second = (row.responses[i] for i in order)
    return _PROMPT.format(question=row.question, first=first, second=second).replace("<image>\n", "")


def official_number(text: str) -> int | None:
    """Return the number (as shown, from 1) of the answer that the official expression prefers; None without a match."""
    match = _VERDICT.search(text.replace("\n", "").replace("*", ""))
    return int(match.group(1)) if match else None


def _number(draw: Prediction) -> int | None:
    """Return the number (as shown, from 1) of the answer that a draw prefers by its stored verdict."""
    return draw.order.index(draw.winner) + 1 if draw.winner in draw.order else None


def _official_right(row: Row, draws: Sequence[Prediction], protocol: ProtocolName) -> float:
    numbers = [official_number(draw.text) if protocol == "official" else _number(draw) for draw in draws]
    if None in numbers:
        return np.nan
    rejected = 1 - row.winner
    agree = sum(number != draw.order.index(rejected) + 1 for number, draw in zip(numbers, draws, strict=True))
    return np.nan if 2 * agree == len(draws) else float(2 * agree > len(draws))


SUITE = VlRewardBench()

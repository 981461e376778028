"""VLRMBench (github.com/JCruan519/VLRMBench, arXiv 2503.07478): its task Multi-Solution, pairs of chains of reasoning.

Questions: `model_eval/vllm_localapi_eval.py`; scorer: `model_eval/get_ms_eval_res.py`. What is kept of them under
`official` and, as far as it concerns figures, under `official_scorer`:

- `step_list` is the better response, `reasoning_error` the worse one; either may be a list of steps, which are joined.
- Every pair is asked in both orders for two scores from 0 to 10, 256 tokens, greedily. The last two whole numbers of a
  text are the scores (8.5 counts as 8 and 5); what is missing of them is 0. A pair is right if the better response has
  more points over both orders: equal, or no text at all, is wrong.
- Rows with `error_info` are not asked and do not count.
- A row has a list of images, and a question about several often has a tag `<image>` where each belongs. A judge is
  shown them there; the script shows all of them first, and leaves the tags in the text.

Under `official` the judge is asked in words of ours for a list of two scores. Under `official_scorer` a verdict for a
response is one point. The other eleven tasks are none of a judge's here: eight ask to mark the steps of one chain, one
whether a chain ends well, two for texts that another model compares.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from carevl.benchmarks.layouts import FileAnswer, Layout, RowIndex
from carevl.benchmarks.outcomes import BOTH_ORDERS, pairs_right, scored_rows
from carevl.benchmarks.predictions import Prediction, in_orders
from carevl.benchmarks.questions import Decoding, Question, is_strict, official_question, strict_questions
from carevl.benchmarks.rows import Record, Row, read_images, read_records, row_key, unique
from carevl.benchmarks.suite import Suite
from carevl.data.turns import take_tags
from carevl.judging.verdicts import Verdict
from carevl.settings.data import ProtocolName
from carevl.stats.bootstrap import Scored, mean

logger = logging.getLogger(__name__)

FILE = "multi_solution.jsonl"
_NUMBER = re.compile(r"\d+")

_PROMPT = """Two assistants answered the same question{about}. Rate each response with a whole number from 0 \
to 10: 0 has nothing to do with the question or makes no sense, 10 is right, well argued and to the point.

Question:
{question}

Response 1:
{first}

Response 2:
{second}

Reply with a list of the two ratings alone, that of Response 1 first, like [7, 4]."""


class VlrmBench(Suite):
    """VLRMBench, Multi-Solution."""

    name = "vlrmbench"
    summary = "pairs of chains of reasoning (Multi-Solution)"
    decoding = Decoding(max_tokens=256)
    has_text_only = True

    def load(self, path: Path, images: Path | None = None) -> list[Row]:
        """Return the rows of `multi_solution.jsonl`, or of the folder that has it; image paths as in the benchmark.

        Raises:
            ValueError: a field is missing or of another kind; the message names file, row and field.
        """
        file = path / FILE if path.is_dir() else path
        records = read_records(file)
        asked = [record for record in records if "error_info" not in record.values]
        if len(asked) < len(records):
            logger.warning("%d rows have error_info, are not asked and do not count", len(records) - len(asked))
        return unique(read_row(record, images or file.parent) for record in asked)

    def questions(
        self, rows: Iterable[Row], protocol: ProtocolName, *, draws: int | None = None, seed: int = 0
    ) -> Iterator[Question]:
        """Yield every pair in both orders, once (no `draws`, no `seed`)."""
        for row in rows:
            for question in strict_questions(self.name, [row], protocol):
                if protocol == "official":
                    first, second = (row.responses[i] for i in question.order)
                    yield official_question(question, row, _PROMPT, first=first, second=second)
                else:
                    yield question

    def parse(self, question: Question, text: str, *, truncated: bool = False) -> Verdict:
        """Return the verdict: the higher of the two scores under `official`, else as our reader reads it."""
        if question.protocol != "official":
            return super().parse(question, text, truncated=truncated)
        first, second = official_scores(text)
        if first == second:
            return Verdict("truncated" if truncated else "none", text, tie=bool(_NUMBER.search(text)))
        return Verdict("ok", text, winner=question.order[int(second > first)])

    def write_verdict(self, question: Question, verdict: Verdict) -> str:
        """Return words that `parse` reads back; empty for a tie."""
        if question.protocol != "official":
            return super().write_verdict(question, verdict)
        return f"{[10 * (i == verdict.winner) for i in question.order]}" if verdict.winner in question.order else ""

    def score(
        self,
        rows: Sequence[Row],
        predictions: Iterable[Prediction],
        protocol: ProtocolName,
        *,
        draws: int | None = None,
    ) -> Scored:
        """Return `overall`, the share of pairs that are right.

        Raises:
            ValueError: a row was not asked in both orders.
        """
        if is_strict(protocol):
            right = pairs_right(rows, predictions)
        else:
            answers = in_orders(rows, predictions, {row.key: BOTH_ORDERS for row in rows})
            leads = [sum(_lead(answer, row.winner) for answer in answers[row.key]) for row in rows]
            right = np.array([lead > 0 for lead in leads], np.float64)
        return scored_rows(rows, right, {"overall": mean(right)})

    def layouts(self) -> Sequence[Layout]:
        """Return that of the official scripts' answers."""
        fields = ("id", "model_answer_front", "model_answer_back")
        return (Layout("vllm_localapi_eval.py", fields, _read_answers, draws_by_order=True),)


def read_row(record: Record, root: Path) -> Row:
    """Return one row of the file. Raises ValueError as `load` does."""
    question, responses = record.text("question"), (_steps(record, "step_list"), _steps(record, "reasoning_error"))
    images = read_images(list(record.texts("image")), root)
    words, places = take_tags(question)
    if len(images) < 2 or len(places) != len(images):
        words, places = question, ()
    return Row(
        key=row_key(record.get("id"), question, *responses),
        task="pairwise",
        group="multi_solution",
        question=words,
        responses=responses,
        gold=(1.0, 0.0),
        images=images,
        places=places,
    )


def _steps(record: Record, name: str) -> str:
    return "".join(record.texts(name)).strip() if isinstance(record.get(name), list) else record.text(name)


def official_scores(text: str) -> tuple[int, int]:
    """Return the last two whole numbers of the text, 0 for what is missing of them."""
    numbers = [int(number) for number in _NUMBER.findall(text)][-2:]
    first, second = (*numbers, 0, 0)[:2]
    return first, second


def _lead(answer: Prediction, better: int) -> int:
    """Return how many points an answer gives the better response beyond the other."""
    if answer.protocol == "official":
        scores = dict(zip(answer.order, official_scores(answer.text), strict=True))
        return scores[better] - scores[1 - better]
    return 0 if answer.winner not in (0, 1) else 1 if answer.winner == better else -1


def _read_answers(records: Iterable[Record], rows: RowIndex) -> Iterator[FileAnswer]:
    """Yield the texts of both orders; `back` showed the responses swapped."""
    for record in records:
        row = rows.only(rows.with_id(record.get("id")), record)
        if row is not None:
            for name, order in zip(("model_answer_front", "model_answer_back"), BOTH_ORDERS, strict=True):
                yield FileAnswer(row, order, record.text(name) if record.values.get(name) else "")


SUITE = VlrmBench()

"""Multimodal RewardBench 2 (github.com/facebookresearch/MMRB2, arXiv 2512.16899): pairs of four tasks.

Scorer: `evaluate/compute_scores/compute_accuracy.py`. What its files are like, and the quirks that are kept under
`official` and `official_scorer`:

- A file per task (`t2i.json`, `edit.json`, `interleaved.json`, `reasoning.json`), one object with `pairs`. The README
  calls the id of a pair `pair_id`, the files and the scorer `id`; both are read.
- Every pair is judged in both orders, and accuracy is over judgments, not over pairs. A missing judgment leaves the
  denominator; one that is neither A nor B is wrong. `overall` pools the judgments of all tasks as the script does,
  `macro` is the mean of the tasks, as in its table.
- The script that asks repairs broken JSON; here the last `"better_response": "…"` in the text is the judgment.

A prompt or a response is a list of texts and images. Several images of a prompt are shown where they stand in it, a
single one before all words. A judge reads responses as text: a pair with images in them stays a row, its questions are
errors that say why, and result files are scored on it all the same. Under `official` the judge is asked in words of
ours for the JSON that the official prompts ask for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from carevl.benchmarks.layouts import FileAnswer, Layout, RowIndex
from carevl.benchmarks.outcomes import BOTH_ORDERS, pairs_right, scored_rows
from carevl.benchmarks.predictions import Prediction, in_orders
from carevl.benchmarks.questions import Decoding, Question, is_strict, official_question, strict_questions
from carevl.benchmarks.rows import Image, Record, Row, read_images, read_records, row_key, unique
from carevl.benchmarks.suite import Suite
from carevl.judging.verdicts import Verdict
from carevl.settings.data import ProtocolName
from carevl.stats.bootstrap import Scored, accuracy_statistics, average, divide, ratio

TASKS = ("t2i", "edit", "interleaved", "reasoning")
IMAGE_PLACE = "[image]"
"""What stands for an image in the text of a response, and in what keys are made from."""
_JUDGMENT = re.compile(r'"better_response"\s*:\s*"([^"]*)"')
_LETTERS = ("A", "B")

_PROMPT = """Two assistants, A and B, were given the same request{about}. Say which of their responses is better.

Look at correctness first, then at helpfulness, completeness and clarity. A longer response is not a better one for \
being longer, and the order in which the responses stand says nothing.

The request:
{question}

Response A:
{first}

Response B:
{second}

Compare the two in a few sentences. Reply with JSON alone, in this form, with "A" or "B" as the last value:
{{"reasoning": "your comparison", "better_response": "A"}}"""


class MultimodalRewardBench2(Suite):
    """Multimodal RewardBench 2."""

    name = "multimodal-rewardbench-2"
    summary = "pairs of four tasks, as far as responses are text"
    decoding = Decoding(temperature=1.0, max_tokens=2000)
    has_text_only = True
    headlines = ("overall", "macro")

    def load(self, path: Path, images: Path | None = None) -> list[Row]:
        """Return the pairs of a task's file, or of those in a folder; image paths begin in `images`, else beside it.

        Raises:
            FileNotFoundError: the folder has none of the four files.
            ValueError: a field is missing or of another kind; the message names file, pair and field.
        """
        files = [path / f"{task}.json" for task in TASKS] if path.is_dir() else [path]
        present = [file for file in files if file.is_file()]
        if not present:
            raise FileNotFoundError(f"{path}: none of {', '.join(file.name for file in files)}")
        root = images or (path if path.is_dir() else path.parent)
        return unique(
            read_row(pair, root, file.stem)
            for file in present
            for record in read_records(file)
            for pair in _pairs(record)
        )

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
        """Return the verdict: `better_response` under `official`, else as our reader reads it."""
        if question.protocol != "official":
            return super().parse(question, text, truncated=truncated)
        letter = official_judgment(text)
        if letter in _LETTERS:
            return Verdict("ok", text, winner=question.order[_LETTERS.index(letter)])
        return Verdict("truncated" if truncated and not letter else "none", text)

    def write_verdict(self, question: Question, verdict: Verdict) -> str:
        """Return words that `parse` reads back; empty for a tie."""
        if question.protocol != "official":
            return super().write_verdict(question, verdict)
        return _judgment(_LETTERS[question.order.index(verdict.winner)]) if verdict.winner in question.order else ""

    def score(
        self,
        rows: Sequence[Row],
        predictions: Iterable[Prediction],
        protocol: ProtocolName,
        *,
        draws: int | None = None,
    ) -> Scored:
        """Return `overall`, `macro` and each task; `right` is the share of a pair's judgments that are right.

        Raises:
            ValueError: a row was not asked in both orders.
        """
        groups = [row.group for row in rows]
        if is_strict(protocol):
            right = pairs_right(rows, predictions)
            return scored_rows(rows, right, accuracy_statistics(right, groups))
        answers = in_orders(rows, predictions, {row.key: BOTH_ORDERS for row in rows})
        judged = np.array([[_is_judgment(answer) for answer in answers[row.key]] for row in rows], np.float64)
        correct = np.array([[answer.winner == row.winner for answer in answers[row.key]] for row in rows], np.float64)
        n_judged, n_correct = judged.sum(axis=1), (judged * correct).sum(axis=1)
        tasks = {task: np.array([group == task for group in groups], np.float64) for task in sorted(set(groups))}
        per_task = {task: ratio(inside * n_correct, inside * n_judged) for task, inside in tasks.items()}
        statistics = {"overall": ratio(n_correct, n_judged), "macro": average(list(per_task.values())), **per_task}
        return scored_rows(rows, divide(n_correct, n_judged), statistics)

    def layouts(self) -> Sequence[Layout]:
        """Return that of the official script's judgments."""
        return (
            Layout("evaluate.py", ("forward", "reverse"), _read_judgments, split=_judged_pairs, draws_by_order=True),
        )

    def published(self) -> Sequence[Sequence[str]]:
        """Return scores in percent, of every pair, as the README of the benchmark gives them."""
        return (("published", *TASKS, "macro"), *_PUBLISHED)


_PUBLISHED = (
    ("Qwen2.5-VL-7B", "50.4", "57.1", "48.4", "47.5", "50.9"),
    ("Qwen3-VL-8B", "59.4", "61.7", "61.5", "54.6", "59.3"),
    ("Qwen3-VL-32B", "64.1", "67.3", "70.5", "56.6", "64.6"),
    ("GPT-5", "70.5", "73.8", "74.4", "70.2", "72.2"),
    ("Gemini 3 Pro", "74.4", "74.9", "76.4", "79.5", "76.3"),
)


def read_row(pair: Record, root: Path, task: str) -> Row:
    """Return one pair of a task's file. Raises ValueError as `load` does."""
    prompt = _segments(pair, "prompt_content")
    responses = [_segments(pair.nested(name), "response_content") for name in ("response_a", "response_b")]
    chosen = pair.text("chosen")
    if chosen not in _LETTERS:
        raise ValueError(f"{pair.location}: chosen must be A or B, found {chosen!r:.80}")
    in_prompt, in_responses = _images(prompt), _images([part for response in responses for part in response])
    question, places = _question(prompt)
    if in_responses:
        error = f"images in responses: this pair has {len(in_responses)}, and a judge reads responses as text"
        images: tuple[Image, ...] = (Image(" + ".join([*in_prompt, *in_responses]), error=error),)
    else:
        images = read_images(in_prompt, root)
    texts = tuple(map(_text, responses))
    return Row(
        key=row_key(pair.get("id", "pair_id"), _text(prompt) if len(places) > 1 else question, *texts),
        task="pairwise",
        group=task,
        question=question,
        responses=texts,
        gold=(float(chosen == "A"), float(chosen == "B")),
        images=images,
        places=places if len(images) > 1 else (),
    )


def _pairs(record: Record) -> Iterator[Record]:
    pairs = record.get("pairs")
    for number, pair in enumerate(pairs if isinstance(pairs, list) else [], start=1):
        if not isinstance(pair, dict):
            raise ValueError(f"{record.location}, pair {number}: expected an object, found {pair!r:.80}")
        yield Record(pair, f"{record.location}, pair {number}")


def _segments(record: Record, name: str) -> list[tuple[str, str]]:
    """Return the texts and images of a prompt or a response, each as (kind, text or path)."""
    value = record.get(name)
    parts = value if isinstance(value, list) else [value]
    segments = [(part[0], part[1]) for part in parts if isinstance(part, list) and len(part) == 2]
    if len(segments) != len(parts) or any(kind not in ("text", "image") for kind, _ in segments):
        raise ValueError(f"{record.location}: {name} must be a list of [text or image, value], found {value!r:.80}")
    return [(kind, Record({kind: text}, record.location).text(kind)) for kind, text in segments]


def _text(segments: Iterable[tuple[str, str]]) -> str:
    return "\n".join(value if kind == "text" else IMAGE_PLACE for kind, value in segments)


def _question(segments: Iterable[tuple[str, str]]) -> tuple[str, tuple[int, ...]]:
    """Return the texts of a prompt, a line or more for each, and the places of its images in them."""
    text, places = "", []
    for kind, value in segments:
        if kind == "image":
            places.append(len(text))
        else:
            text += f"{value}\n"
    question = text.removesuffix("\n")
    return question, tuple(min(place, len(question)) for place in places)


def _images(segments: Iterable[tuple[str, str]]) -> list[str]:
    return [value for kind, value in segments if kind == "image"]


def official_judgment(text: str) -> str | None:
    """Return the last value of `better_response` in the text; None without one."""
    found = _JUDGMENT.findall(text)
    return str(found[-1]) if found else None


def _judgment(letter: str) -> str:
    return json.dumps({"better_response": letter})


def _is_judgment(answer: Prediction) -> bool:
    """Whether an answer counts: in the official format any judgment, A and B or not, else a verdict."""
    return bool(official_judgment(answer.text)) if answer.protocol == "official" else answer.winner is not None


def _judged_pairs(record: Record) -> Iterator[Record]:
    """Yield the judgments of each pair, from one object that has them by the pair's id."""
    for native_id, judged in record.values.items():
        if isinstance(judged, dict):
            yield Record({"id": native_id, **judged}, f"{record.location}, {native_id}")


def _read_judgments(records: Iterable[Record], rows: RowIndex) -> Iterator[FileAnswer]:
    """Yield the first judgment of either order, as the scorer takes it; `reverse` showed the responses swapped."""
    for record in records:
        row = rows.only(rows.with_id(record.get("id")), record)
        if row is not None:
            for name, order in zip(("forward", "reverse"), BOTH_ORDERS, strict=True):
                yield FileAnswer(row, order, _first_judgment(record.values.get(name)))


def _first_judgment(judgments: Any) -> str:
    first = judgments[0] if isinstance(judgments, list) and judgments else {}
    letter = first.get("judgement") if isinstance(first, Mapping) else None
    return _judgment(str(letter)) if letter else ""


SUITE = MultimodalRewardBench2()

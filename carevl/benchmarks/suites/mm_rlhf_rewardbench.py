"""MM-RLHF-RewardBench (github.com/Kwai-YuanQi/MM-RLHF, arXiv 2502.10391): several pairs per question.

Official scorer: `llava/eval/cal_performance_mmreweard_bench.py`, over rewards of the two responses. `accuracy` is the
share of pairs with chosen above rejected (equal is wrong), `accuracy_plus` the share of ids with every pair right.
Its quirks, kept under `official` and `official_scorer`:

- The category is the first of mcq, long, short, safety, video that occurs anywhere in the path of the image or video.
- 25 of the 170 pairs are about a video: a folder of frames, which the official script samples 32 of. Such a row has
  a path that is no image file, so `missing_images` names it.

Under `official` a reward model scores each response as the assistant turn of the prompt. (The script's own prompt asks
for a critique that the benchmark's own model turns into a reward with a head: it is part of that model.) Under
`official_scorer` a judge rates each response from 1 to 5, where equal ratings are common and wrong. Under `strict` it
compares each pair in both orders.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from carevl.benchmarks.layouts import NO_IMAGES, Layout, own_script
from carevl.benchmarks.outcomes import pairs_right, response_ratings, scored_rows
from carevl.benchmarks.predictions import Prediction
from carevl.benchmarks.questions import (
    Question,
    is_strict,
    pointwise_questions,
    strict_questions,
)
from carevl.benchmarks.rows import Record, Row, load_rows, read_images, row_key
from carevl.benchmarks.suite import Suite
from carevl.settings.data import ProtocolName
from carevl.stats.bootstrap import FloatArray, Scored, Statistic, mean

_CATEGORIES = ("mcq", "long", "short", "safety", "video")


class MmRlhfRewardBench(Suite):
    """MM-RLHF-RewardBench."""

    name = "mm-rlhf-rewardbench"
    summary = "pairs about images and videos"

    def load(self, path: Path, images: Path | None = None) -> list[Row]:
        """Return the rows of a JSONL file; image and video paths are relative to `images` or the file.

        Raises:
            ValueError: a field is missing or of another kind; the message names file, row and field.
        """
        return load_rows(path, images, read_row)

    def questions(
        self, rows: Iterable[Row], protocol: ProtocolName, *, draws: int | None = None, seed: int = 0
    ) -> Iterator[Question]:
        """Yield each response by itself for the official scorer, both orders for the strict one (no `seed`)."""
        if is_strict(protocol):
            return strict_questions(self.name, rows, protocol)
        return pointwise_questions(self.name, rows, protocol, draws or self.draws)

    def score(
        self,
        rows: Sequence[Row],
        predictions: Iterable[Prediction],
        protocol: ProtocolName,
        *,
        draws: int | None = None,
    ) -> Scored:
        """Return `accuracy` and `accuracy_plus`, and each as `NAME/CATEGORY`. Rewards of several draws are averaged.

        Raises:
            ValueError: a row has no prediction, or one of its responses has none.
        """
        if is_strict(protocol):
            right = pairs_right(rows, predictions)
        else:
            rewards = response_ratings(rows, predictions, draws or self.draws)
            right = np.array([chosen > rejected for chosen, rejected in rewards], np.float64)
        statistics: dict[str, Statistic] = {"accuracy": mean(right), "accuracy_plus": mean(_plus(rows, right))}
        for category in sorted({row.group for row in rows}):
            inside = np.where([row.group == category for row in rows], right, np.nan)
            statistics[f"accuracy/{category}"] = mean(inside)
            statistics[f"accuracy_plus/{category}"] = mean(_plus(rows, inside))
        return scored_rows(rows, right, statistics)

    def layouts(self) -> Sequence[Layout]:
        """Return that of the official script's result files, one a chunk."""
        return (
            own_script(
                "eval_mm_reward_bench.py",
                ("id", "prompt", "chosen", "rejected", "rewards"),
                lambda record: read_row(record, NO_IMAGES),
                _written_rewards,
                draws_by_order=True,
            ),
        )


def read_row(record: Record, root: Path) -> Row:
    """Return one row of the file. Raises ValueError as `load` does."""
    row_id, question = str(record.get("id")), record.text("prompt")
    responses, picture = (record.text("chosen"), record.text("rejected")), record.text("image", "video")
    return Row(
        key=row_key(row_id, question, *responses),
        task="pairwise",
        group=next((category for category in _CATEGORIES if category in picture), "other"),
        question=question,
        responses=responses,
        gold=(1.0, 0.0),
        images=read_images(picture, root),
        cluster=row_id,
    )


def _written_rewards(record: Record) -> Iterator[tuple[tuple[int, ...], float]]:
    """Yield the `rewards` of the two responses."""
    for i, reward in enumerate(record.get("rewards")):
        yield (i,), float(reward)


def _plus(rows: Sequence[Row], right: FloatArray) -> FloatArray:
    """Return per id, on its first row: 1 if every pair of it is right, else 0; nan on its other rows."""
    pairs: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if not np.isnan(right[number]):
            pairs[row.unit].append(number)
    plus = np.full(len(rows), np.nan)
    for numbers in pairs.values():
        plus[numbers[0]] = right[numbers].min()
    return plus


SUITE = MmRlhfRewardBench()

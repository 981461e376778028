"""Predictions that the benchmarks' own scripts wrote, read into the `predictions` table for the official scorer.

| benchmark | JSONL written by | fields beside the row's own |
|---|---|---|
| vl-rewardbench | `inference_hf.py` | `ranking`, `meta.filter_choice` (the answer), `meta.random_number` (1: swapped) |
| mllm-judge | `api_benchmark.py` | `mllm_judge` (the answer, or what stood under `Judgement`) |
| multimodal-rewardbench | `1_run_model_as_judge_gpt4o.py` | `Meta` (the row), `output` (`outputs` for several draws) |
| mm-rlhf-rewardbench | `eval_mm_reward_bench.py` | `rewards` of chosen and rejected |

A row that comes several times is several draws. Answers to rows that were not asked for are left out. Most files do not
keep the prompt, so `prompt_hash` is that of the empty text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from carevl.benchmarks.predictions import Prediction, record, record_score
from carevl.benchmarks.questions import Question
from carevl.benchmarks.rows import Record, Row, read_records
from carevl.benchmarks.suite import Benchmark
from carevl.benchmarks.suites import mllm_judge, mm_rlhf_rewardbench, multimodal_rewardbench, vl_rewardbench

_Answer = tuple[tuple[int, ...], str | float]
"""The order shown, and the text (or, for a reward model, the score of the one response)."""


def read_official(benchmark: Benchmark, path: Path, rows: Sequence[Row], judge: str) -> list[Prediction]:
    """The answers in an official result file to these rows.

    Raises:
        ValueError: the benchmark's scripts keep no answers that can be read, or a field is missing.
    """
    if benchmark.NAME not in _LAYOUTS:
        raise ValueError(f"no official layout is known for {benchmark.NAME}; known: {', '.join(_LAYOUTS)}")
    read_row, read_answers = _LAYOUTS[benchmark.NAME]
    of_key = {row.key: row for row in rows}
    draws: Counter[tuple[str, tuple[int, ...]]] = Counter()
    predictions: list[Prediction] = []
    for found in read_records(path):
        stored = read_row(found, path.parent)
        if stored.key in of_key:
            row = of_key[stored.key]
            for shown, answer in read_answers(found):
                order = tuple(row.responses.index(stored.responses[i]) for i in shown)
                counted = (row.key, order if isinstance(answer, float) else ())
                predictions.append(_predict(benchmark, row, order, draws[counted], answer, judge))
                draws[counted] += 1
    return predictions


def _predict(
    benchmark: Benchmark, row: Row, order: tuple[int, ...], sample: int, answer: str | float, judge: str
) -> Prediction:
    task = "pointwise" if isinstance(answer, float) else row.task
    question = Question(benchmark.NAME, "official", row.key, order, sample, task, "", row.image)
    if isinstance(answer, float):
        return record_score(question, judge, answer)
    return record(question, judge, answer, benchmark.parse(question, answer))


def _vl_row(found: Record, root: Path) -> Row:
    values = found.values | {"human_ranking": found.get("ranking", "human_ranking")}
    return vl_rewardbench.read_row(Record(values, found.where), root)


def _vl_answers(found: Record) -> Iterator[_Answer]:
    meta = _nested(found, "meta")
    yield (1, 0) if meta.get("random_number") else (0, 1), meta.text("filter_choice")


def _mllm_answers(found: Record) -> Iterator[_Answer]:
    shown = len(found.values["answers"]) if "answers" in found.values else 2 if "answer1" in found.values else 1
    yield tuple(range(shown)), found.text("mllm_judge")


def _multimodal_row(found: Record, root: Path) -> Row:
    return multimodal_rewardbench.read_row(_nested(found, "Meta"), root)


def _multimodal_answers(found: Record) -> Iterator[_Answer]:
    for text in found.texts("outputs") if "outputs" in found.values else [found.text("output")]:
        yield (0, 1), text


def _mm_rlhf_answers(found: Record) -> Iterator[_Answer]:
    for i, reward in enumerate(found.get("rewards")):
        yield (i,), float(reward)


def _nested(found: Record, name: str) -> Record:
    value: Any = found.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"{found.where}: {name} must be an object, found {value!r:.80}")
    return Record(value, f"{found.where}, {name}")


_LAYOUTS: dict[str, tuple[Callable[[Record, Path], Row], Callable[[Record], Iterator[_Answer]]]] = {
    vl_rewardbench.NAME: (_vl_row, _vl_answers),
    mllm_judge.NAME: (mllm_judge.read_row, _mllm_answers),
    multimodal_rewardbench.NAME: (_multimodal_row, _multimodal_answers),
    mm_rlhf_rewardbench.NAME: (mm_rlhf_rewardbench.read_row, _mm_rlhf_answers),
}

"""MLLM-as-a-Judge (github.com/Dongping-Chen/MLLM-Judge, arXiv 2402.04788): ratings, pairs with ties, and rankings.

Official prompt: `scripts/prompt.py` in the setting `No COT`, put together as in `scripts/api_benchmark.py`; metrics:
`scripts/calculate_metrics.ipynb`. The quirks, kept under `official` and `official_scorer`:

- Responses are shown in the order of the file, never swapped; three draws, and a figure is the mean over the draws.
- Temperature 0.2, top-p 0.4 (`gpt4_judge.py`, of the paper's first version: 0.9 and 0.9).
- Text stands before the image. The answer should be JSON with the verdict under `Judgement`. The script that cut
  verdicts out of answers is not public: here the tags `[[…]]` after the last `Judgement` are the verdict, or all tags
  when there are none after it; a rating or a pair needs its tags to agree, a ranking is all letters in their order.
- A judgment without a verdict leaves the denominator, in every metric.
- `score` is Pearson's r, `pair_*` accuracy, `batch` the Levenshtein distance between the two strings of letters, here
  divided by the longer one's length as in the paper (the notebook prints it undivided). Lower is better.
- Each is computed per source dataset; the published figure is their unweighted mean (the notebook's `overall` pools).
- Two definitions of accuracy without ties exist. `pair_without_ties` is the notebook's: rows whose label *or* verdict
  is a tie are left out. `pair_without_gold_ties` leaves out rows whose label is a tie.

Under `strict`: one greedy judgment of a response or a ranking, both orders of a pair, in the judge's own prompt. That
prompt has no tie verdict, so a tied pair is never right. No verdict is a wrong pair or the distance 1; a missing
rating carries no information (the judge's own mean stands in, which pulls r to 0), and r of a constant judge is 0.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from carevl.benchmarks.layouts import NO_IMAGES, Layout, own_script
from carevl.benchmarks.predictions import Prediction, draws_of
from carevl.benchmarks.questions import (
    Decoding,
    Question,
    as_stored,
    drawn_questions,
    is_strict,
    judge_question,
    strict_questions,
)
from carevl.benchmarks.rows import Record, Row, read_images, read_records, row_key, unique
from carevl.benchmarks.suite import Suite
from carevl.benchmarks.suites import mllm_judge_metrics as metrics
from carevl.benchmarks.suites.mllm_judge_metrics import LETTERS
from carevl.benchmarks.suites.mllm_judge_prompt import official_prompt
from carevl.judging.verdicts import Verdict
from carevl.settings.data import ProtocolName
from carevl.stats.bootstrap import Scored

logger = logging.getLogger(__name__)

_TAG = re.compile(r"\[\[\s*([A-Za-z0-9]+)\s*\]\]")
_RATINGS = ("1", "2", "3", "4", "5")
_WINNERS = ("A", "B", "C")


class MllmJudge(Suite):
    """MLLM-as-a-Judge."""

    name = "mllm-judge"
    summary = "ratings, pairs and rankings"
    draws = 3
    decoding = Decoding(temperature=0.2, top_p=0.4, image_first=False)
    headlines = ("score", "pair_with_ties", "pair_without_ties", "batch")
    by_protocol = False
    is_rated = False

    def load(self, path: Path, images: Path | None = None) -> list[Row]:
        """Return the rows of one JSONL file, or of `score`, `pair` and `batch` in a folder (those that are there).

        Pairs labelled -1 were skipped by the annotators: they are left out, and their number is logged.

        Raises:
            FileNotFoundError: the folder has none of the three files.
            ValueError: a field is missing or of another kind; the message names file, row and field.
        """
        names = ("score.jsonl", "pair.jsonl", "batch.jsonl")
        files = [file for file in sorted(path.iterdir()) if file.name.lower() in names] if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"{path}: none of {', '.join(names)}")
        root = images or (path if path.is_dir() else path.parent)
        records = [record for file in files for record in read_records(file)]
        labelled = [record for record in records if str(_label(record)) != "-1"]
        if len(labelled) < len(records):
            logger.warning(
                "%d rows were skipped by the annotators (label -1) and left out", len(records) - len(labelled)
            )
        return unique(read_row(record, root) for record in labelled)

    def questions(
        self, rows: Iterable[Row], protocol: ProtocolName, *, draws: int | None = None, seed: int = 0
    ) -> Iterator[Question]:
        """Yield the order of the file `draws` times for the official scorer, else every order once (no `seed`)."""
        if is_strict(protocol):
            for row in rows:
                if row.task == "pairwise":
                    yield from strict_questions(self.name, [row], protocol)
                else:
                    yield judge_question(self.name, row, protocol, as_stored(row))
        else:
            yield from drawn_questions(self.name, rows, protocol, draws or self.draws, as_stored, _official_prompt)

    def parse(self, question: Question, text: str, *, truncated: bool = False) -> Verdict:
        """Return the verdict: by the official tags under `official`, else by our reader."""
        if question.protocol != "official":
            verdict = super().parse(question, text, truncated=truncated)
            return replace(verdict, winner=-1) if verdict.tie and question.task == "pairwise" else verdict
        tags = official_tags(text)
        if question.task == "ranking":
            shown = [LETTERS.find(tag) for tag in tags]
            if sorted(shown) == list(range(len(question.order))):
                return Verdict("ok", text, ranking=tuple(question.order[n] for n in shown))
        elif len(set(tags)) > 1:
            return Verdict("both", text)
        elif question.task == "pointwise" and tags and tags[0] in _RATINGS:
            return Verdict("ok", text, rating=int(tags[0]))
        elif question.task == "pairwise" and tags and tags[0] in _WINNERS:
            return Verdict("ok", text, winner=-1 if tags[0] == "C" else question.order["AB".index(tags[0])])
        return Verdict("truncated" if truncated and not tags else "none", text)

    def write_verdict(self, question: Question, verdict: Verdict) -> str:
        """Return words that `parse` reads back; empty for a tie in the judge's own grammar."""
        if question.protocol != "official":
            return super().write_verdict(question, verdict)
        if verdict.ranking is not None:
            return ", ".join(f"[[{LETTERS[question.order.index(i)]}]]" for i in verdict.ranking)
        if verdict.rating is not None:
            return f"[[{verdict.rating:g}]]"
        return "[[C]]" if verdict.winner not in question.order else f"[[{'AB'[question.order.index(verdict.winner)]}]]"

    def score(
        self,
        rows: Sequence[Row],
        predictions: Iterable[Prediction],
        protocol: ProtocolName,
        *,
        draws: int | None = None,
    ) -> Scored:
        """Return the statistics of every metric, and of each as `METRIC/DATASET`.

        They are `score`, `pair_with_ties`, `pair_without_ties`, `pair_without_gold_ties` and `batch`. `right` holds the
        pairs (with ties; the first draw of the official scorer), nan for other rows.

        Raises:
            ValueError: a row has no prediction.
        """
        if is_strict(protocol):
            return metrics.scored(rows, [metrics.strict_outcomes(rows, predictions)], strict=True)
        draws = draws or self.draws
        drawn = draws_of(rows, predictions, draws)
        samples = [[_draw(drawn[row.key], sample) for row in rows] for sample in range(draws)]
        return metrics.scored(rows, [_outcomes(rows, answers) for answers in samples], strict=False)

    def layouts(self) -> Sequence[Layout]:
        """Return that of the official script's result files."""
        return (
            own_script(
                "api_benchmark.py",
                ("instruction", "original_dataset", "mllm_judge"),
                lambda record: read_row(record, NO_IMAGES),
                _written_answers,
            ),
        )


def _label(record: Record) -> object:
    return record.get("human_answer", "human")


def read_row(record: Record, root: Path) -> Row:
    """Return one row of the file. Raises ValueError as `load` does."""
    question, dataset, label = record.text("instruction"), record.text("original_dataset"), str(_label(record)).strip()
    images = read_images(record.text("image_path"), root)
    if "answers" in record.values:
        texts = tuple(_answer(answer, record) for answer in record.get("answers"))
        if sorted(label) != sorted(LETTERS[: len(texts)]):
            raise ValueError(f"{record.location}: expected a permutation of {len(texts)} letters, found {label!r}")
        gold = tuple(-float(label.index(LETTERS[i])) for i in range(len(texts)))
        key = row_key(record.get("batch_id", "id"), question, *texts)
        return Row(key, "ranking", dataset, question, texts, gold, images)
    if "answer1" in record.values:
        texts = (_answer(record.get("answer1"), record), _answer(record.get("answer2"), record))
        if label not in _WINNERS:
            raise ValueError(f"{record.location}: expected A, B, C or -1, found {label!r}")
        key = row_key(record.get("pair_id"), question, *texts)
        return Row(key, "pairwise", dataset, question, texts, (float(label == "A"), float(label == "B")), images)
    if label not in _RATINGS:
        raise ValueError(f"{record.location}: expected a rating from 1 to 5, found {label!r}")
    texts = (record.text("answer"),)
    return Row(
        row_key(record.get("score_id"), question, *texts),
        "pointwise",
        dataset,
        question,
        texts,
        (float(label),),
        images,
    )


def _answer(value: object, record: Record) -> str:
    if not isinstance(value, dict):
        raise ValueError(f"{record.location}: expected {{name, answer}}, found {value!r:.80}")
    return Record(value, record.location).text("answer")


def _official_prompt(row: Row, order: Sequence[int]) -> str:
    return official_prompt(row.task, row.question, [row.responses[i] for i in order])


def _written_answers(record: Record) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yield the answer in `mllm_judge`: all of it, or the part under `Judgement`.

    The script asks for JSON and keeps what stands under `Judgement`, of any type: a model that writes `[[4]]` without
    quotes gives a list in a list, and an answer that is no JSON null.
    """
    n_shown = len(record.values["answers"]) if "answers" in record.values else 2 if "answer1" in record.values else 1
    yield tuple(range(n_shown)), _as_text(record.nullable("mllm_judge"))


def _as_text(judgement: object) -> str:
    """Return a text as it is, null as the empty one, and a number or what a list holds as tags."""
    if judgement is None or isinstance(judgement, str):
        return judgement or ""
    return ", ".join(leaf if "[[" in leaf else f"[[{leaf}]]" for leaf in _leaves(judgement))


def _leaves(value: object) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    else:
        yield str(value)


def official_tags(text: str) -> list[str]:
    """Return the contents of `[[…]]` after the last `Judgement`, or in the whole answer where none follow it."""
    tags = _TAG.findall(text.rpartition("Judgement")[2]) or _TAG.findall(text)
    return [str(tag).upper() for tag in tags]


def _draw(draws: Sequence[Prediction], sample: int) -> Prediction | None:
    """Return the draw of this number; None, which counts as no verdict, for a row that has fewer."""
    return draws[sample] if sample < len(draws) else None


def _outcomes(rows: Sequence[Row], answers: Sequence[Prediction | None]) -> metrics.Outcomes:
    """Official rankings are compared as the letters written, permutation or not."""
    official = [answer.text if answer is not None and answer.protocol == "official" else None for answer in answers]
    letters = [None if text is None else "".join(official_tags(text)) for text in official]
    return metrics.outcomes(rows, answers, letters)


SUITE = MllmJudge()

"""The files of the example: which pictures serve what, and how each part is written.

```
WORK/data/train/questions.parquet      pictures and questions without answers: what CAREVL starts from
WORK/data/labelled/questions.parquet   the same with the package's answers, as sentences, for the two routers
WORK/data/truth/train.parquet          the answers that were taken away, which nothing but results.json reads
WORK/data/{dev,test}/pairs.parquet     a right and a wrong sentence for each picture, for the benchmark `pairwise`
```
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from carevl.stats.draws import hash_uniform
from examples.easy_vqa.questions import KINDS, Asked, Picture, read, say

_SHARES = {"lessons": 0.5, "labelled": 0.6, "dev": 0.65, "train": 1.0}
"""Up to where the hash of a training picture puts it into a part; the first half teaches captioner and base judge."""
SIZES = {"train": 640, "labelled": 400, "dev": 200, "test": 1000}
"""Most questions of each part, one for each picture."""
Row = tuple[Picture, Asked]

_TEXT = pa.string()
_QUESTION = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": _TEXT}), "question": _TEXT})
_ANSWERED = _QUESTION.append(pa.field("answer", _TEXT))
_PAIR = pa.schema(
    {
        "id": _TEXT,
        **{field.name: field.type for field in _QUESTION},
        "responses": pa.list_(_TEXT),
        "better": pa.int64(),
        "category": _TEXT,
    }
)
_TRUTH = pa.schema(
    {
        **dict.fromkeys(("image_sha256", "question", "kind", "answer", "evidence"), _TEXT),
        "decidable": pa.bool_(),
        "responses": pa.list_(pa.struct({"text": _TEXT, "rating": pa.int64()})),
    }
)


def divide() -> dict[str, list[Picture]]:
    """Return the pictures of each part, `test` with those of the package's test questions; none is in two."""
    parts: dict[str, list[Picture]] = {name: [] for name in _SHARES}
    for picture in read("train"):
        at = hash_uniform("easy-vqa", picture.sha256)
        parts[next(name for name, end in _SHARES.items() if at < end)].append(picture)
    return {**parts, "test": read("test")}


def ask_each(pictures: Iterable[Picture], most: int) -> list[Row]:
    """Return one question about each of so many pictures; kinds of question take turns."""
    chosen = sorted(pictures, key=lambda picture: hash_uniform("order", picture.sha256))
    asked: list[Row] = []
    for picture in chosen[:most]:
        by_kind = {question.kind: question for question in _shuffled(picture)}
        turn = len(asked) % len(KINDS)
        kind = next(kind for kind in (*KINDS[turn:], *KINDS[:turn]) if kind in by_kind)
        asked.append((picture, by_kind[kind]))
    return asked


def write(out: Path, share: float) -> None:
    """Write a share of all files, unless they are there; what an interrupted call left is written anew."""
    if out.is_dir():
        return
    unfinished = out.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    parts = {name: ask_each(pictures, round(share * SIZES.get(name, 0))) for name, pictures in divide().items()}
    _write(unfinished / "train/questions.parquet", map(_question, parts["train"]), _QUESTION)
    _write(unfinished / "labelled/questions.parquet", map(_answered, parts["labelled"]), _ANSWERED)
    _write(unfinished / "truth/train.parquet", map(_truth, parts["train"]), _TRUTH)
    for name in ("dev", "test"):
        _write(unfinished / name / "pairs.parquet", map(_pair, parts[name]), _PAIR)
    unfinished.rename(out)


def _write(file: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema) -> None:
    file.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema), file)


def _question(row: Row) -> dict[str, Any]:
    picture, asked = row
    return {"image": {"bytes": picture.file.read_bytes(), "path": picture.file.name}, "question": asked.text}


def _answered(row: Row) -> dict[str, Any]:
    return {**_question(row), "answer": say(row[1].text, row[1].answer)}


def _pair(row: Row) -> dict[str, Any]:
    picture, asked = row
    rng = random.Random(picture.sha256)
    better = rng.randrange(2)
    sentences = [say(asked.text, asked.answer), say(asked.text, rng.choice(asked.wrong))]
    return {
        "id": picture.file.stem,
        **_question(row),
        "responses": sentences if better == 0 else sentences[::-1],
        "better": better,
        "category": asked.kind,
    }


def _truth(row: Row) -> dict[str, Any]:
    picture, asked = row
    return {
        "image_sha256": picture.sha256,
        "question": asked.text,
        "kind": asked.kind,
        "decidable": True,
        "answer": asked.answer,
        "evidence": say(asked.text, asked.answer),
        "responses": [{"text": say(asked.text, answer), "rating": 1} for answer in asked.wrong],
    }


def _shuffled(picture: Picture) -> list[Asked]:
    return sorted(picture.asked, key=lambda asked: hash_uniform("question", picture.sha256, asked.text))

"""Writes a drawn world to disk in the formats of public data sets, as data from outside would be.

```
OUT/world.json                              what was drawn: version, seed, counts
OUT/train/rlaif_v.parquet                   pairs in RLAIF-V's columns; `chosen` is right in 70 % of the rows
OUT/train/vlfeedback.parquet                3 or 4 responses in VLFeedback's columns; ratings as noisy
OUT/calibration/rlaif_v.parquet             pairs; `chosen` is always right: these are the labels
OUT/{dev,test}/vl_rewardbench.parquet       VL-RewardBench's columns and its three groups
OUT/{dev,test}/mllm_judge/{score,pair,batch}.jsonl and image/
OUT/truth/{train,calibration,dev,test}.parquet   the truth of every item; only reports read it
```
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from carevl.miniworld.items import Item, Response, draw_items, respond
from carevl.miniworld.scenes import WORLD_VERSION, Pool, png, world_rng

WORLD_FILE = "world.json"
"""Written last: a world without it is unfinished."""
CALIBRATION_IMAGES = 3000
BENCHMARK_PAIRS = 480
SOURCE_PREFERENCE_RIGHT = 0.7
"""Share of training items whose published preference is right, whatever the kind."""

GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "wildvision-battle-": ("general", ("colour", "position", "description")),
    "RLAIF-V-": ("hallucination", ("count", "existence")),
    "mathverse_": ("reasoning", ("comparison", "relation", "same")),
}
"""VL-RewardBench id prefix to its group and the kinds of question that fall into it."""

_TEXT, _TEXTS, _INT = pa.string(), pa.list_(pa.string()), pa.int64()
_IMAGE = pa.struct({"bytes": pa.binary(), "path": _TEXT})
_RLAIF_V = pa.schema(
    {
        "ds_name": _TEXT,
        "image": _IMAGE,
        "question": _TEXT,
        "chosen": _TEXT,
        "rejected": _TEXT,
        "origin_dataset": _TEXT,
        "origin_split": _TEXT,
        "idx": _INT,
        "image_path": _TEXT,
    }
)
_ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
_RATED = pa.struct({"Rating": _TEXT, "Rationale": _TEXT})
_COMPLETION = pa.struct({"annotations": pa.struct(dict.fromkeys(_ASPECTS, _RATED)), "model": _TEXT, "response": _TEXT})
_VLFEEDBACK = pa.schema(
    {"id": _TEXT, "prompt": _TEXT, "models": _TEXTS, "completions": pa.list_(_COMPLETION), "image": _IMAGE}
)
_VL_REWARDBENCH = pa.schema(
    {
        "id": _TEXT,
        "query": _TEXT,
        "response": _TEXTS,
        "image": _IMAGE,
        "human_ranking": pa.list_(_INT),
        "models": _TEXTS,
        "judge": _TEXT,
        "rationale": _TEXT,
        "query_source": _TEXT,
        "ground_truth": _TEXT,
    }
)
_TRUTH_RESPONSE = pa.struct({"text": _TEXT, "right": pa.bool_(), "errors": _TEXTS, "rating": _INT})
_TRUTH = pa.schema(
    {
        "file": _TEXT,
        "row": _TEXT,
        "image_sha256": _TEXT,
        "question": _TEXT,
        "kind": _TEXT,
        "decidable": pa.bool_(),
        "answer": _TEXT,
        "evidence": _TEXT,
        "scene": _TEXT,
        "responses": pa.list_(_TRUTH_RESPONSE),
    }
)
_MODELS = ("sketcher", "talker", "counter", "guesser")
_BLOCK = 1000


class _Table:
    """A Parquet file written block by block."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.schema, self.rows = schema, list[dict[str, Any]]()
        self.writer = pq.ParquetWriter(path, schema, compression="zstd")

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if len(self.rows) == _BLOCK:
            self.flush()

    def flush(self) -> None:
        self.writer.write_table(pa.Table.from_pylist(self.rows, self.schema))
        self.rows = []

    def close(self) -> None:
        if self.rows:
            self.flush()
        self.writer.close()


def _truth(file: str, row: object, image: bytes, item: Item) -> dict[str, Any]:
    question = item.question
    return {
        "file": file,
        "row": str(row),
        "image_sha256": hashlib.sha256(image).hexdigest(),
        "question": question.text,
        "kind": question.kind,
        "decidable": item.decidable,
        "answer": question.answer,
        "evidence": question.evidence,
        "scene": item.scene.key,
        "responses": [
            {"text": r.text, "right": r.right, "errors": list(r.errors), "rating": r.rating} for r in item.responses
        ],
    }


def _pair(item: Item, split: str, idx: int, image: bytes, right_first: bool) -> dict[str, Any]:
    right, wrong = sorted(item.responses, key=lambda response: not response.right)
    chosen, rejected = (right, wrong) if right_first else (wrong, right)
    path = f"{split}-{idx:07d}.png"
    return {
        "ds_name": "miniworld",
        "image": {"bytes": image, "path": path},
        "question": item.question.text,
        "chosen": chosen.text,
        "rejected": rejected.text,
        "origin_dataset": "miniworld",
        "origin_split": json.dumps({"split": split}),
        "idx": idx,
        "image_path": path,
    }


def _feedback(item: Item, idx: int, image: bytes, truthful: bool) -> dict[str, Any]:
    completions = []
    for model, response in zip(_MODELS, item.responses, strict=False):
        rating = response.rating if truthful else 6 - response.rating
        rated = {aspect: {"Rating": str(rating), "Rationale": ""} for aspect in _ASPECTS}
        rated["Ethical Considerations"] = {"Rating": "5", "Rationale": ""}
        completions.append({"annotations": rated, "model": model, "response": response.text})
    return {
        "id": f"miniworld-{idx}",
        "prompt": item.question.text,
        "models": [completion["model"] for completion in completions],
        "completions": completions,
        "image": {"bytes": image, "path": f"train-{idx:07d}.png"},
    }


def _write_train(out: Path, n_items: int, seed: int) -> None:
    pairs, many = _Table(out / "train/rlaif_v.parquet", _RLAIF_V), _Table(out / "train/vlfeedback.parquet", _VLFEEDBACK)
    truths = _Table(out / "truth/train.parquet", _TRUTH)
    rng = world_rng("preferences", seed)
    drawn = draw_items("train", seed, n_responses=(2, 2, 2, 2, 2, 2, 2, 3, 4), per_image=2)
    numbered = ((image, item) for image, items in drawn for item in items)
    data: tuple[object, bytes] = (None, b"")
    for idx, (image, item) in enumerate(itertools.islice(numbered, n_items)):
        data = data if data[0] is image else (image, png(image))
        truthful = rng.random() < SOURCE_PREFERENCE_RIGHT
        if len(item.responses) == 2:
            pairs.add(_pair(item, "train", idx, data[1], truthful))
            truths.add(_truth("rlaif_v.parquet", idx, data[1], item))
        else:
            row = _feedback(item, idx, data[1], truthful)
            many.add(row)
            truths.add(_truth("vlfeedback.parquet", row["id"], data[1], item))
    for table in (pairs, many, truths):
        table.close()


def _write_calibration(out: Path, n_images: int, seed: int) -> None:
    pairs, truths = (
        _Table(out / "calibration/rlaif_v.parquet", _RLAIF_V),
        _Table(out / "truth/calibration.parquet", _TRUTH),
    )
    for idx, (image, items) in enumerate(itertools.islice(draw_items("calibration", seed), n_images)):
        data = png(image)
        pairs.add(_pair(items[0], "calibration", idx, data, right_first=True))
        truths.add(_truth("rlaif_v.parquet", idx, data, items[0]))
    pairs.close()
    truths.close()


def _bench_row(item: Item, idx: int, image: bytes) -> dict[str, Any]:
    prefix = next(prefix for prefix, (_, kinds) in GROUPS.items() if item.question.kind in kinds)
    row_id = f"{prefix}{idx}"
    return {
        "id": row_id,
        "query": item.question.text,
        "response": [response.text for response in item.responses],
        "image": {"bytes": image, "path": f"{row_id}.png"},
        "human_ranking": [0 if response.right else 1 for response in item.responses],
        "models": list(_MODELS[:2]),
        "judge": "miniworld",
        "rationale": item.question.evidence,
        "query_source": f"miniworld-{item.question.kind}",
        "ground_truth": item.question.answer,
    }


def _answer(response: Response, n: int) -> dict[str, str]:
    return {"name": _MODELS[n], "answer": response.text}


def _score_row(item: Item, n: int, rng: random.Random) -> dict[str, Any]:
    response = rng.choice(item.responses)
    return {"score_id": n, **_answer(response, 0), "human": response.rating}


def _pair_row(item: Item, n: int, rng: random.Random) -> dict[str, Any]:
    claims = [item.question.right] * 2 if rng.random() < 0.2 else None
    first, second = respond(item.question, claims, rng) if claims else item.responses
    label = "C" if first.rating == second.rating else "A" if first.rating > second.rating else "B"
    return {"pair_id": n, "answer1": _answer(first, 0), "answer2": _answer(second, 1), "human_answer": label}


def _batch_row(item: Item, n: int, rng: random.Random) -> dict[str, Any]:
    claims = (item.question.right, *item.question.wrong)
    order = rng.sample(range(4), 4)
    chosen = [rng.choice([claim for claim in claims if len(claim.errors) == mistakes]) for mistakes in order]
    responses = respond(item.question, chosen, rng)
    ranking = "".join("ABCD"[order.index(mistakes)] for mistakes in range(4))
    return {"batch_id": n, "answers": [_answer(r, k) for k, r in enumerate(responses)], "human_answer": ranking}


def _rankable(item: Item) -> bool:
    """Tell whether the question has claims with none, one, two and three mistakes."""
    return {1, 2, 3} <= {len(claim.errors) for claim in item.question.wrong}


_MLLM_JUDGE: dict[str, tuple[int, Callable[[Item, int, random.Random], dict[str, Any]]]] = {
    "score": (160, _score_row),
    "pair": (160, _pair_row),
    "batch": (40, _batch_row),
}
"""MLLM-as-a-Judge file to its number of rows and their maker."""


def _write_mllm_judge(out: Path, pool: Pool, seed: int) -> None:
    (out / "image").mkdir(parents=True, exist_ok=True)
    rng, number = world_rng("mllm-judge", pool, seed), 0
    for task, (n_rows, make) in _MLLM_JUDGE.items():
        drawn = ((image, items[0]) for image, items in draw_items(pool, task, seed))
        fitting = (pair for pair in drawn if task != "batch" or _rankable(pair[1]))
        with (out / f"{task}.jsonl").open("w", encoding="utf-8") as lines:
            for image, item in itertools.islice(fitting, n_rows):
                number += 1
                (out / "image" / f"{number}.png").write_bytes(png(image))
                row = {
                    "id": number,
                    "image_path": f"image/{number}.png",
                    "original_dataset": f"miniworld-{item.question.kind}",
                    "instruction": item.question.text,
                }
                lines.write(json.dumps(row | make(item, number, rng)) + "\n")


def _write_vl_rewardbench(out: Path, pool: Pool, seed: int) -> None:
    rows = _Table(out / pool / "vl_rewardbench.parquet", _VL_REWARDBENCH)
    truths = _Table(out / f"truth/{pool}.parquet", _TRUTH)
    for idx, (image, items) in enumerate(itertools.islice(draw_items(pool, "pairs", seed), BENCHMARK_PAIRS)):
        data = png(image)
        row = _bench_row(items[0], idx, data)
        rows.add(row)
        truths.add(_truth("vl_rewardbench.parquet", row["id"], data, items[0]))
    rows.close()
    truths.close()


def publish(out: Path, n_items: int, seed: int, calibration_images: int = CALIBRATION_IMAGES) -> dict[str, Any]:
    """Draw a world and write it under `out`, which must be empty or absent; the same bytes for the same arguments.

    Args:
        n_items: training items.
        calibration_images: labelled images of one item each.

    Returns:
        What world.json holds: version, seed, and the rows of each file.

    Raises:
        FileExistsError: `out` holds something already.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; draw into a new directory or delete it first")
    _write_train(out, n_items, seed)
    _write_calibration(out, calibration_images, seed)
    for pool in ("dev", "test"):
        _write_vl_rewardbench(out, pool, seed)
        _write_mllm_judge(out / pool / "mllm_judge", pool, seed)
    rows = {
        str(file.relative_to(out)): _count(file)
        for file in sorted(out.rglob("*"))
        if file.suffix != ".png" and file.is_file()
    }
    world = {"world_version": WORLD_VERSION, "seed": seed, "rows": rows}
    (out / WORLD_FILE).write_text(json.dumps(world, indent=2) + "\n")
    return world


def _count(file: Path) -> int:
    if file.suffix == ".parquet":
        return int(pq.read_metadata(file).num_rows)
    return len(file.read_text(encoding="utf-8").splitlines())

"""The drawn world is read by the same readers as everything else, and every row is accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from carevl.data.intake import merge_images
from carevl.data.reading import Source, detect_formats
from carevl.miniworld.publish import publish

ITEMS = 240


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "drawn"
    publish(out, ITEMS, seed=3, calibration_images=60)
    return out


def truth(world: Path, split: str) -> dict[tuple[str, str], dict[str, Any]]:
    rows = pq.read_table(world / f"truth/{split}.parquet").to_pylist()
    return {(row["file"], row["row"]): row for row in rows}


def test_train_is_read_whole_by_two_formats(world: Path, take_in: Callable[..., Any]) -> None:
    source = Source("miniworld", str(world / "train"))
    assert {Path(file).name: name for file, name in detect_formats(source).items()} == {
        "rlaif_v.parquet": "rlaif-v",
        "vlfeedback.parquet": "vlfeedback",
    }
    images, items = take_in(source)
    rows = json.loads((world / "world.json").read_text())["rows"]
    total = rows["train/rlaif_v.parquet"] + rows["train/vlfeedback.parquet"]
    assert total == ITEMS
    assert sum(len(item["sources"]) for item in items) == total
    assert not [item for item in items if item["error"]]
    assert {name for item in items for name in item["images"]} == {image["image_id"] for image in merge_images(images)}


def test_preferences_agree_with_the_truth_as_often_as_published(world: Path, take_in: Callable[..., Any]) -> None:
    known = truth(world, "train")
    _, items = take_in(Source("miniworld", str(world / "train")))
    right = []
    for item in items:
        for found in item["sources"]:
            file, extra = Path(found["locator"].rpartition("#")[0]).name, json.loads(found["extra"])
            row = known[file, str(extra["idx"] if file == "rlaif_v.parquet" else extra["id"])]
            assert (row["image_sha256"], row["question"]) == (item["images"][0], item["question"])
            rights = {response["text"]: response["right"] for response in row["responses"]}
            assert rights.keys() == set(item["responses"])
            best = item["responses"][found["preference"].index(max(found["preference"]))]
            right.append(rights[best])
    assert 0.6 < sum(right) / len(right) < 0.8


def test_calibration_is_labelled_rightly(world: Path, take_in: Callable[..., Any]) -> None:
    source = Source("labels", str(world / "calibration/rlaif_v.parquet"), labels=True, split="calibration")
    known = truth(world, "calibration")
    _, items = take_in(source)
    assert sum(len(item["sources"]) for item in items) == 60
    for item in items:
        row = known["rlaif_v.parquet", str(json.loads(item["sources"][0]["extra"])["idx"])]
        best = item["responses"][item["gold"].index(1.0)]
        assert {response["text"]: response["right"] for response in row["responses"]}[best]
        assert item["split"] == "calibration"

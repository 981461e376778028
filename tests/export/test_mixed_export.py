"""Items about several images, with turns, and about none are exported in place, and read again into the same items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from carevl.data.intake import Intake, merge_items
from carevl.data.reading import Source, read_source
from carevl.export.export import export
from carevl.export.writers import WRITERS
from carevl.pipeline.keys import stage_keys
from carevl.settings.data import Source as SettingsSource
from carevl.settings.loader import load_settings
from carevl.stages import ingest
from carevl.store.ingested import Ingested
from carevl.store.run import Run
from tests.helpers.mixed_sources import N, write_sources

ASKED = "And <image>? Of the second one: "


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that has read the three sources."""
    directory = tmp_path_factory.mktemp("mixed")
    sources = [SettingsSource(path=str(file), name=name) for name, file in write_sources(directory).items()]
    settings, run = load_settings("mini"), Run(directory / "run")
    data = settings.data.model_copy(update={"sources": sources, "parts": 3})
    settings = settings.model_copy(update={"data": data, "benchmarks": []})
    key = stage_keys(settings, run)["ingest"]
    counts = ingest.run_ingest(settings, run, run.table(key).directory, lambda *_: None)
    facts = {"stage": "ingest", "fingerprint": key.fingerprint, "cause": dict(key.fingerprint_inputs)}
    run.table(key).finish(facts | counts)
    return run


@pytest.mark.parametrize("to", WRITERS)
def test_mixed_items_are_read_again_as_they_were(to: str, mixed: Run, tmp_path: Path) -> None:
    done = export(mixed, "items", to, tmp_path / "out")
    assert (done.rows, done.left_out) == ({"train": 3 * N}, 0)
    source = Source("repeated", str(tmp_path / "out"), text_only=True)
    repeated = merge_items(Intake(source)(row)[1] for row in read_source(source))
    assert [item["error"] for item in repeated] == [None] * 3 * N
    [table] = (mixed.root / "ingest").iterdir()
    expected = {item["item_id"]: item for item in Ingested(table).items.read().to_pylist()}
    for item in repeated:
        same = ("images", "places", "turns", "question", "responses", "source_preference")
        assert {name: item[name] for name in same} == {name: expected[item["item_id"]][name] for name in same}


def _rows(run: Run, to: str, out: Path) -> list[dict[str, Any]]:
    export(run, "items", to, out)
    [file] = out.glob("train.*")
    kind = "parquet" if file.suffix == ".parquet" else "json"
    data = load_dataset(kind, data_files=str(file), split="train", cache_dir=str(out.with_suffix(".cache")))
    rows: list[dict[str, Any]] = list(data)
    return rows


def test_tags_and_parts_stand_where_the_images_do(mixed: Run, tmp_path: Path) -> None:
    names = {"llamafactory": ("conversations", "value"), "ms-swift": ("messages", "content")}
    for to, (column, text) in names.items():
        rows = _rows(mixed, to, tmp_path / to)
        for row in rows:
            said = [turn[text] for turn in row[column]]
            assert sum(each.count("<image>") for each in said) == len(row["images"])
        several = [row for row in rows if len(row["images"]) == 2]
        assert len(several) == N
        assert all(row[column][0][text] == "Do you see <image>?" for row in several)
        assert all(row[column][2][text].startswith(ASKED) for row in several)
    for row in _rows(mixed, "trl", tmp_path / "trl"):
        parts = [part["type"] for turn in row["prompt"] for part in turn["content"]]
        assert parts.count("image") == len(row["images"])
        if len(row["images"]) == 2:
            assert parts == ["text", "image", "text", "text", "text", "image", "text"]


@pytest.mark.train
def test_one_step_of_trl_on_rows_of_several_images(mixed: Run, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed; it is in the dev extra", exc_type=ImportError)
    import transformers as hf

    from carevl.miniworld.weights import WEIGHTS

    export(mixed, "items", "trl", tmp_path / "out")
    file, cache = str(tmp_path / "out" / "train.parquet"), str(tmp_path / "cache")
    data = load_dataset("parquet", data_files=file, split="train", cache_dir=cache)
    shown = data.filter(lambda row: len(row["images"]) == 2)
    assert len(shown) == N
    model = hf.AutoModelForImageTextToText.from_pretrained(WEIGHTS / "judge")
    processor = hf.AutoProcessor.from_pretrained(WEIGHTS / "judge")
    options = {"per_device_train_batch_size": 4, "max_steps": 1, "use_cpu": True, "report_to": "none"}
    options |= {"output_dir": str(tmp_path / "made"), "max_length": None, "disable_tqdm": True, "save_strategy": "no"}
    options |= {"logging_steps": 1, "bf16": False, "gradient_checkpointing": False}
    training = trl.DPOTrainer(model, args=trl.DPOConfig(**options), train_dataset=shown, processing_class=processor)
    training.train()
    [loss] = [facts["loss"] for facts in training.state.log_history if "loss" in facts]
    assert 0 < loss < 20

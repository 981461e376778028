"""What is exported loads in `datasets` and is read again into the same items."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from carevl.data.intake import Intake, merge_items
from carevl.data.reading import Source, detect_formats, read_source
from carevl.errors import UserError
from carevl.export.examples import Example, Part
from carevl.export.export import export
from carevl.export.writers import WRITERS
from carevl.judging.turns import Turn
from carevl.store.ingested import Ingested
from carevl.store.run import Run

WHAT = ("items", "pairs", "judgments", "dpo")
READ_AS = {"trl": "trl", "llamafactory": "llamafactory-sharegpt", "ms-swift": "ms-swift"}
ASKED = (Turn("user", "What is it?", (0,)),)
Items = dict[str, dict[str, Any]]


def loaded(out: Path, split: str, cache: Path) -> list[dict[str, Any]]:
    [file] = out.glob(f"{split}.*")
    kind = "parquet" if file.suffix == ".parquet" else "json"
    rows: list[dict[str, Any]] = list(load_dataset(kind, data_files=str(file), split="train", cache_dir=str(cache)))
    return rows


@pytest.mark.parametrize("to", WRITERS)
@pytest.mark.parametrize("what", WHAT)
def test_every_export_loads_in_datasets_with_its_images(to: str, what: Any, run: Run, tmp_path: Path) -> None:
    done = export(run, what, to, tmp_path / "out")
    assert set(done.rows) == {"train", "calibration"}
    assert done.left_out == 0
    for split, count in done.rows.items():
        rows = loaded(tmp_path / "out", split, tmp_path / "cache")
        assert len(rows) == count
        for row in rows:
            [image] = row["images"]
            picture = Image.open(tmp_path / "out" / image) if isinstance(image, str) else image
            assert picture.size == (96, 96)


@pytest.mark.parametrize("to", WRITERS)
def test_pairs_are_read_again_into_the_same_items(to: str, run: Run, items: Items, tmp_path: Path) -> None:
    export(run, "items", to, tmp_path / "out")
    source = Source("repeated", str(tmp_path / "out"))
    assert set(detect_formats(source).values()) == {READ_AS[to]}
    intake = Intake(source)
    repeated = {item["item_id"]: item for item in merge_items(intake(row)[1] for row in read_source(source))}
    assert not [item["error"] for item in repeated.values() if item["error"]]
    stated = {
        name: item
        for name, item in items.items()
        if len(item["responses"]) == 2 and len(set(item["gold"] or item["source_preference"] or [0])) == 2
    }
    assert len(stated) > 50
    for name, item in stated.items():
        values = item["gold"] or item["source_preference"]
        assert repeated[name]["source_preference"] == [float(value == max(values)) for value in values]
        assert (repeated[name]["images"], repeated[name]["question"]) == (item["images"], item["question"])
        assert repeated[name]["responses"] == item["responses"]
    many = {(*item["images"], item["question"]) for item in items.values() if len(item["responses"]) > 2}
    others = [item for name, item in repeated.items() if name not in stated]
    assert others
    assert {(*item["images"], item["question"]) for item in others} <= many


@pytest.mark.parametrize("to", WRITERS)
def test_high_pairs_alone_are_exported_with_their_winner_chosen(
    to: str, run: Run, items: Items, tmp_path: Path
) -> None:
    export(run, "pairs", to, tmp_path / "out")
    source = Source("repeated", str(tmp_path / "out"))
    chosen_count = Counter()
    for row in read_source(source):
        assert row.preference is not None
        item = items[str(row.preference.extra["id"])]
        chosen, rejected = row.preference.responses
        assert {chosen, rejected} == set(item["responses"][:2])
        assert len(chosen) >= len(rejected)
        chosen_count[item["item_id"]] += 1
    assert set(chosen_count) == {name for name in items if int(name[:4], 16) % 3}
    assert set(chosen_count.values()) == {1}


def test_judgments_become_answers_to_their_prompt(run: Run, items: Items, tmp_path: Path) -> None:
    for to in WRITERS:
        export(run, "judgments", to, tmp_path / to)
    [trl] = loaded(tmp_path / "trl", "calibration", tmp_path / "cache")[:1]
    [llama] = loaded(tmp_path / "llamafactory", "calibration", tmp_path / "cache")[:1]
    [swift] = loaded(tmp_path / "ms-swift", "calibration", tmp_path / "cache")[:1]
    image, asked = trl["prompt"][0]["content"]
    [answer] = trl["completion"][0]["content"]
    assert image == {"type": "image", "text": None}
    prompt, text = asked["text"], answer["text"]
    assert items[trl["id"]]["question"] in prompt
    assert text.endswith("Overall Judgment: Answer 1 is better.")
    assert llama["conversations"] == [{"from": "human", "value": f"<image>{prompt}"}, {"from": "gpt", "value": text}]
    assert swift["messages"] == [
        {"role": "user", "content": f"<image>{prompt}"},
        {"role": "assistant", "content": text},
    ]


def test_llamafactory_reads_what_the_files_are(run: Run, tmp_path: Path) -> None:
    for what in ("dpo", "judgments"):
        done = export(run, what, "llamafactory", tmp_path / what)
        info = json.loads((tmp_path / what / "dataset_info.json").read_text())
        assert set(info) == {f"carevl_{split}" for split in done.rows}
        for entry in info.values():
            rows = [json.loads(line) for line in (tmp_path / what / entry["file_name"]).read_text().splitlines()]
            assert all(column in row for row in rows for column in entry["columns"].values())
            assert entry.get("ranking", False) == (what == "dpo")
            assert all(row["conversations"][0]["value"].count("<image>") == len(row["images"]) == 1 for row in rows)


def test_images_keep_their_bytes(run: Run, items: Items, tmp_path: Path) -> None:
    export(run, "dpo", "ms-swift", tmp_path / "out")
    files = list((tmp_path / "out" / "images").iterdir())
    assert {file.stem for file in files} == {name for item in items.values() for name in item["images"]}
    assert all(hashlib.sha256(file.read_bytes()).hexdigest() == file.stem for file in files)


@pytest.mark.train
def test_one_step_of_trl_on_exported_pairs(run: Run, judge: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed; it is in the dev extra", exc_type=ImportError)
    import transformers as hf

    common = {"per_device_train_batch_size": 4, "max_steps": 1, "use_cpu": True, "report_to": "none"}
    common |= {"output_dir": str(tmp_path / "made"), "max_length": None, "disable_tqdm": True, "save_strategy": "no"}
    common |= {"learning_rate": 1e-3, "logging_steps": 1, "bf16": False, "gradient_checkpointing": False}
    for what, trainer, settings in (
        ("pairs", trl.DPOTrainer, trl.DPOConfig),
        ("dpo", trl.DPOTrainer, trl.DPOConfig),
        ("judgments", trl.SFTTrainer, trl.SFTConfig),
    ):
        export(run, what, "trl", tmp_path / what)
        file = str(tmp_path / what / "calibration.parquet")
        data = load_dataset("parquet", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
        model = hf.AutoModelForImageTextToText.from_pretrained(judge)
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        processor = hf.AutoProcessor.from_pretrained(judge)
        training = trainer(model, args=settings(**common), train_dataset=data, processing_class=processor)
        training.train()
        [loss] = [facts["loss"] for facts in training.state.log_history if "loss" in facts]
        assert 0 < loss < 20
        assert any(not weight.equal(before[name]) for name, weight in model.named_parameters())


def test_texts_with_the_image_tag_are_left_out_and_counted(run: Run, tmp_path: Path) -> None:
    changed = Run(tmp_path / "run")
    shutil.copytree(run.root, changed.root)
    manifest = changed.latest("ingest")
    assert manifest is not None
    table = Ingested(changed.root / "ingest" / manifest["fingerprint"]).items
    rows = table.read(0).to_pylist()
    high = next(row for row in rows if int(row["item_id"][:4], 16) % 3)
    high["question"] = "What does <image> mean?"
    table.write(0, pa.Table.from_pylist(rows, table.read(0).schema))
    done = export(changed, "pairs", "ms-swift", tmp_path / "out")
    before = export(run, "pairs", "ms-swift", tmp_path / "before")
    assert (done.left_out, before.left_out) == (1, 0)
    assert sum(done.rows.values()) == sum(before.rows.values()) - 1


def test_an_unknown_format_is_named_with_those_that_exist(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no export format 'tlr'; there are trl, llamafactory, ms-swift"):
        export(run, "items", "tlr", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_has_not_come_so_far_is_named_and_nothing_is_written(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage route is not finished, so there are no pairs to export"):
        export(Run(tmp_path / "none"), "pairs", "trl", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_use_is_not_written_to(run: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not empty"):
        export(run, "pairs", "trl", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_bytes_of_trl_images_are_the_originals(run: Run, tmp_path: Path) -> None:
    export(run, "pairs", "trl", tmp_path / "out")
    [image] = pq.read_table(tmp_path / "out/train.parquet")["images"][0].as_py()
    assert Image.open(io.BytesIO(image["bytes"])).format == "PNG"
    assert image["path"].endswith(".png")


def _written(to: str, out: Path, *splits: str) -> None:
    """Write an example of each of these splits."""
    out.mkdir(parents=True)
    examples = [Example(f"item-{n}", split, ("f00d",), ASKED, "A cat.", "A dog.") for n, split in enumerate(splits)]
    with closing(WRITERS[to](out)) as writer:
        writer.write(Part(examples, {"f00d": (b"bytes", "PNG")}))


@pytest.mark.parametrize("to", WRITERS)
@pytest.mark.parametrize("split", ["../../x", "..", ".", "", "a/b", "/tmp/x", "a\0b", "a" * 300])
def test_a_split_that_leads_elsewhere_is_refused_and_nothing_is_written(to: str, split: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"split .*: it becomes part of a path"):
        _written(to, tmp_path / "one" / "two", split)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file.name for file in files if file.suffix in (".parquet", ".jsonl")] == []


@pytest.mark.parametrize("to", WRITERS)
def test_splits_that_differ_in_letter_case_are_refused(to: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="splits 'train' and 'Train' differ in letter case alone"):
        _written(to, tmp_path / "out", "train", "Train")


@pytest.mark.parametrize("to", ["llamafactory", "ms-swift"])
def test_an_image_whose_id_leads_elsewhere_is_refused(to: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    example = Example("item", "train", ("../../x",), ASKED, "A cat.", None)
    with closing(WRITERS[to](tmp_path / "out")) as writer, pytest.raises(UserError, match=r"image .*part of a path"):
        writer.write(Part([example], {"../../x": (b"bytes", "PNG")}))
    assert not list(tmp_path.rglob("*.png"))

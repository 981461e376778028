"""Planted leaks are set aside with the row that they leak, and nothing else is."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from carevl.benchmarks.contamination import Contamination
from carevl.benchmarks.suites import SUITES
from carevl.data.drawn import DataRoot, draw
from carevl.data.images import ImageLimits
from carevl.data.perceptual_hash import ImageSignature, signature_of
from carevl.errors import SettingsError
from carevl.settings.data import Benchmark
from carevl.settings.data import Source as SettingsSource
from carevl.settings.loader import load_settings
from carevl.settings.tree import Settings
from carevl.stages import ingest
from carevl.store.ingested import Ingested
from carevl.store.run import Run
from carevl.store.schemas import CONTAMINATED
from tests.helpers.families import draw_picture

WORLD = ["miniworld.items=80", "miniworld.calibration_images=20", "data.parts=3"]
Lines = Callable[..., Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run directory with its world drawn."""
    run = Run(tmp_path_factory.mktemp("run"))
    draw(load_settings("mini", WORLD), run)
    return run


def benchmark(run: Run) -> list[dict[str, Any]]:
    [file] = run.root.glob("world-*/test/vl_rewardbench.parquet")
    rows: list[dict[str, Any]] = pq.read_table(file).slice(0, 8).to_pylist()
    return rows


def with_planted(rows: list[dict[str, Any]], folder: Path, lines: Lines, *extra: str) -> Settings:
    settings = load_settings("mini", [*WORLD, *extra])
    planted = SettingsSource(path=str(lines(rows, "planted.jsonl")), name="planted", image_root=str(folder))
    data = settings.data.model_copy(update={"sources": [planted, *settings.data.sources]})
    return settings.model_copy(update={"data": data})


def row(image: str, question: str, responses: list[str]) -> dict[str, str]:
    return {"image": image, "question": question, "chosen": responses[0], "rejected": responses[1]}


def save(data: bytes, file: Path, scale: float = 1.0, **options: Any) -> str:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.resize((round(image.width * scale), round(image.height * scale))).save(file, **options)
    return file.name


def take_in(settings: Settings, run: Run, directory: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    written = ingest.run_ingest(settings, run, directory, lambda *_: None)
    items: list[dict[str, Any]] = Ingested(directory).items.read().to_pylist()
    assert sum(len(item["sources"]) for item in items) == written["rows_in"]
    return written, items


def plant(run: Run, folder: Path) -> list[dict[str, str]]:
    """One row of each way to share something with the benchmark's first rows; only the first two are leaks."""
    tests = [(each["image"]["bytes"], each["query"], each["response"]) for each in benchmark(run)]
    (one_row, question, _), (two, asked_two, _), (three, _, _), (_, asked_four, texts_four) = tests[:4]
    other = Image.linear_gradient("L").convert("RGB").rotate(30)
    other.save(folder / "other.png")
    return [
        row(save(one_row, folder / "same.bmp"), "Is this new?", ["Yes.", "No."]),
        row(save(two, folder / "near.png", 1.1), f"<image> {asked_two.upper()} ", ["Yes.", "No."]),
        row(save(three, folder / "near2.png", 1.1), "Is this another question?", ["Yes.", "No."]),
        row("other.png", asked_four, [texts_four[1], "Perhaps."]),
        row("other.png", question, ["Perhaps.", "No idea."]),
    ]


def test_planted_leaks_are_set_aside_and_nothing_else(run: Run, tmp_path: Path, write_lines: Lines) -> None:
    settings = with_planted(plant(run, tmp_path), tmp_path, write_lines)
    written, items = take_in(settings, run, tmp_path / "ingest")
    aside = {item["sources"][0]["locator"].rpartition("#")[2]: item for item in items if item["error"]}
    assert sorted(aside) == ["0", "1"]
    assert {item["sources"][0]["source"] for item in aside.values()} == {"planted"}
    names = [each["id"] for each in benchmark(run)]
    assert aside["0"]["error"]["kind"] == CONTAMINATED
    assert f"the pixels of its image with row {names[0]}#" in aside["0"]["error"]["message"]
    assert f"its question and nearly its image with row {names[1]}#" in aside["1"]["error"]["message"]
    assert aside["1"]["error"]["message"].endswith(" of vl-rewardbench")
    assert all(item["responses"] and item["gold"] is None for item in aside.values())
    assert (written["contaminated"], written["errors"]) == (2, 0)
    result = written["contamination"]["vl-rewardbench"]
    assert result["removed"] == {"planted": {"equal_pixels": 1, "near_duplicate": 1}}
    assert result["same_text"]["planted"] == 1
    assert (result["rows"], result["images"], result["missing_images"]) == (960, 960, 0)
    assert written["contamination"]["mllm-judge"]["removed"] == {}
    json.dumps(written)


def test_a_labelled_row_that_leaks_labels_nothing(run: Run, tmp_path: Path, write_lines: Lines) -> None:
    settings = with_planted(plant(run, tmp_path)[:1], tmp_path, write_lines)
    sources = [settings.data.sources[0].model_copy(update={"labels": True}), *settings.data.sources[1:]]
    data = settings.data.model_copy(update={"sources": sources})
    _, items = take_in(settings.model_copy(update={"data": data}), run, tmp_path / "ingest")
    [aside] = [item for item in items if item["error"]]
    assert (aside["error"]["kind"], aside["gold"]) == (CONTAMINATED, None)
    assert sum(item["gold"] is not None for item in items) == 20


def test_leaks_stay_when_the_settings_say_so(run: Run, tmp_path: Path, write_lines: Lines) -> None:
    settings = with_planted(plant(run, tmp_path), tmp_path, write_lines, "data.decontaminate=false")
    written, items = take_in(settings, run, tmp_path / "ingest")
    assert not [item for item in items if item["error"]]
    assert (written["contaminated"], written["contamination"]) == (0, {})


def test_benchmarks_are_part_of_what_the_tables_depend_on(run: Run) -> None:
    settings, without = load_settings("mini", WORLD), load_settings("mini", [*WORLD, "data.decontaminate=false"])
    first = settings.benchmarks[0].model_copy(update={"protocols": ["strict"], "rows": 3})
    other = settings.model_copy(update={"benchmarks": [first, *settings.benchmarks[1:]]})
    fewer = settings.model_copy(update={"benchmarks": settings.benchmarks[:1]})
    assert ingest.facts(settings, DataRoot.of(settings, run)) == ingest.facts(other, DataRoot.of(other, run))
    assert (
        ingest.facts(settings, DataRoot.of(settings, run))["benchmarks"]
        != ingest.facts(fewer, DataRoot.of(fewer, run))["benchmarks"]
    )
    assert ingest.facts(without, DataRoot.of(without, run))["benchmarks"] == []


def test_missing_and_broken_benchmark_images_are_counted(run: Run, tmp_path: Path) -> None:
    rows = [
        {"id": f"a-{n}", "query": "Q?", "response": ["x", "y"], "human_ranking": [0, 1], "image": f"{n}.png"}
        for n in range(3)
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (tmp_path / "0.png").write_bytes(b"<html>")
    (tmp_path / "1.png").write_bytes(benchmark(run)[0]["image"]["bytes"])
    test = Benchmark(name="vl-rewardbench", path=str(tmp_path / "test.jsonl"))
    settings = load_settings("mini", WORLD).model_copy(update={"benchmarks": [test]})
    written, _ = take_in(settings, run, tmp_path / "ingest")
    result = written["contamination"]["vl-rewardbench"]
    assert {name: result[name] for name in ("rows", "images", "missing_images", "broken_images")} == {
        "rows": 3,
        "images": 1,
        "missing_images": 1,
        "broken_images": 1,
    }


def test_every_image_of_a_benchmark_row_is_screened(tmp_path: Path) -> None:
    pictures = {name: draw_picture(n) for n, name in enumerate("abcd")}
    files = {name: save(_png(picture), tmp_path / f"{name}.png") for name, picture in pictures.items()}
    rows = tmp_path / "pairs.jsonl"
    pair = {"id": 1, "images": [files["a"], files["b"]], "question": "Is <image> like <image>?", "better": 0}
    rows.write_text(json.dumps(pair | {"responses": ["Yes.", "No."]}))
    screened = Contamination({"pairwise": SUITES["pairwise"].load(rows)}, ImageLimits())
    item = {"sources": [{"source": "s"}], "question": "New?", "responses": ["Yes.", "No."]}
    found = {}
    for name, picture in pictures.items():
        error = screened.screen(item, [_seen(pictures["c"]), _seen(picture)]).get("error")
        found[name] = error and error["message"].partition("#")[0]
    leak = "shares the pixels of its image with row 1"
    assert found == {"a": leak, "b": leak, "c": None, "d": None}
    report = screened.report()["pairwise"]
    assert (report["rows"], report["images"], report["removed"]) == (1, 2, {"s": {"equal_pixels": 2}})


def test_text_alone_shares_its_question_with_text_alone(tmp_path: Path) -> None:
    rows = tmp_path / "pairs.jsonl"
    pair = {"id": 1, "question": "What is 2 and 2?", "responses": ["Four.", "Five."], "better": 0}
    rows.write_text(json.dumps(pair))
    screened = Contamination({"pairwise": SUITES["pairwise"].load(rows)}, ImageLimits())
    item = {"sources": [{"source": "s"}], "responses": ["4", "5"]}
    found = {
        (question, bool(shown)): screened.screen(item | {"question": question}, shown).get("error")
        for question in ("What is 2  and 2?", "What is 2 and 3?")
        for shown in ([], [_seen(draw_picture(0))])
    }
    [(place, error)] = [(place, error) for place, error in found.items() if error]
    assert place == ("What is 2  and 2?", False)
    assert error["message"].startswith("shares its question about text alone with row 1")
    assert screened.report()["pairwise"]["removed"] == {"s": {"equal_question": 1}}


def _seen(picture: Image.Image) -> tuple[bytes, ImageSignature]:
    return _png(picture), signature_of(picture)


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_an_unknown_benchmark_is_named(run: Run, tmp_path: Path) -> None:
    test = Benchmark(name="vl-rewardbanch", path="x")
    settings = load_settings("mini", WORLD).model_copy(update={"benchmarks": [test]})
    with pytest.raises(SettingsError, match=r"there is no benchmark 'vl-rewardbanch'; did you mean vl-rewardbench\?"):
        take_in(settings, run, tmp_path / "ingest")


@pytest.mark.parametrize("mode", ["report", "merge", "ignore"])
def test_near_duplicates_among_the_data_are_reported_or_merged(
    mode: str, run: Run, tmp_path: Path, write_lines: Lines
) -> None:
    [file] = run.root.glob("world-*/train/rlaif_v.parquet")
    picture = pq.read_table(file).slice(0, 1).to_pylist()[0]["image"]["bytes"]
    rows = [
        row(save(picture, tmp_path / "a.png"), "What is it?", ["A.", "B."]),
        row(save(picture, tmp_path / "b.jpg", quality=90), "What is it?", ["A.", "B."]),
        row(save(picture, tmp_path / "c.png", 1.1), "And that?", ["A.", "B."]),
        row("absent.png", "What is it?", ["A.", "B."]),
    ]
    settings = with_planted(rows, tmp_path, write_lines, f"data.near_duplicates={mode}")
    written, items = take_in(settings, run, tmp_path / "ingest")
    result = written["near_duplicates"]
    ours = [item for item in items if item["sources"][0]["source"] == "planted" and not item["error"]]
    assert result["mode"] == mode
    if mode == "ignore":
        assert (result["compared"], result["images"], len(ours)) == (0, 0, 3)
        return
    copies = {each for pair in result["examples"] for each in pair}
    assert {item["images"][0] for item in ours} <= copies
    assert result["compared"] > 30
    images = {image["image_id"] for image in Ingested(tmp_path / "ingest").images.read().to_pylist()}
    if mode == "report":
        assert (len(ours), len({item["images"][0] for item in ours})) == (3, 3)
        assert copies <= images
        return
    kept = {kept for _, kept in result["examples"]}
    assert len(kept) == 1
    assert copies & images == kept
    assert {item["images"][0] for item in ours} == kept
    assert sorted(len(item["sources"]) for item in ours) == [1, 2]
    extras = [json.loads(each["extra"]).get("images", [None]) for item in ours for each in item["sources"]]
    noted = [image for images in extras for image in images]
    assert len(set(noted) - {None} - kept) == len(noted) - noted.count(None)
    assert {name for part in items for name in part["images"]} <= images

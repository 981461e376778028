"""`carevl audit` on a run directory: a drawn world, its truth, and simulated scores with the flaws of the experts."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from carevl.audit.injection import LINES
from carevl.audit.rewrites import REWRITES
from carevl.cli.app import app, run_here
from carevl.data.drawn import draw
from carevl.data.truth import read_truth
from carevl.models.locate import locate
from carevl.pipeline.audit import audit, audit_judge, keep_beside_judge, sample_pairs
from carevl.pipeline.keys import keys_until, stage_keys
from carevl.settings.loader import load_settings
from carevl.stages import ingest
from carevl.store.ingested import Ingested
from carevl.store.run import VERSION, Run, RunError
from carevl.store.schemas import BORROWED_CAPTIONS, CAPTIONS, SCORES
from carevl.store.table import Table

SETTINGS = ["miniworld.items=60", "miniworld.calibration_images=600", "data.parts=3"]
CAREVL = Path(sys.executable).with_name("carevl")


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """A run up to its scores: items are read from a drawn world, captions and scores are made up from its truth."""
    run, settings = Run(tmp_path_factory.mktemp("audited")), load_settings("mini", SETTINGS)
    keys = _ingested(settings, run)
    items = Ingested(run.table(keys["ingest"]).directory).items
    truths = read_truth(next(run.root.glob("world-*")))
    rng = np.random.default_rng(0)
    for number in items.parts():
        rows = items.read(number).to_pylist()
        captions = {row["images"][0]: "The image shows one red circle." for row in rows}
        for name, key in keys.items():
            if name == "caption":
                made = [{"image_id": image, "view": "default", "text": text} for image, text in captions.items()]
                run.table(key).write(number, pa.Table.from_pylist(made, CAPTIONS))
                borrowed = pa.Table.from_pylist([], BORROWED_CAPTIONS)
                Table(run.table(key).directory / "borrowed").write(number, borrowed)
            elif name.startswith("score/"):
                expert = name.removeprefix("score/")
                made = [
                    {
                        "item_id": row["item_id"],
                        "expert": expert,
                        "view": view,
                        "scores": _scores(rng, expert, row, truth, view),
                    }
                    for row in rows
                    for truth in [truths[row["images"][0], row["question"]]]
                    for view in ("default", "none")
                ]
                run.table(key).write(number, pa.Table.from_pylist(made, SCORES))
    for key in keys.values():
        run.table(key).finish({"cause": dict(key.fingerprint_inputs)})
    return run


def _ingested(settings, run):
    """Reads the sources; returns the keys up to the scores."""
    draw(settings, run)
    keys = keys_until(stage_keys(settings, run), "score")
    ingest.run_ingest(settings, run, run.table(keys["ingest"]).directory, lambda *_: None)
    run.remember(settings.model_dump(mode="json"))
    return keys


def _scores(rng, expert, row, truth, view):
    """What an expert gives each response: its flaw is that of the shipped expert of this name."""
    read = view == "default" and truth.decidable and not (expert == "qwen2" and truth.kind == "count")
    scores = []
    for text in row["responses"]:
        score = rng.normal(0, 0.7)
        if read:
            score += 3 * (truth.ratings[text] == 5)
        elif expert == "mistral":
            score += rng.choice([-1.5, 1.5])
        if expert == "llama":
            score += 1.2 * np.log2(len(text))
        scores.append(float(score * {"llama": 1.0, "qwen2": 0.4, "mistral": 2.5}[expert]))
    return scores


@pytest.fixture(scope="module")
def report(where):
    return audit(where.root, 0, lambda _: None)


def test_the_flaws_of_the_experts_are_found_by_name(report):
    found = {(finding["expert"], finding["flaw"]) for finding in report["findings"]}
    assert {("llama", "prefers_longer"), ("qwen2", "weak_on_count"), ("mistral", "overconfident")} <= found
    assert not {("qwen2", "prefers_longer"), ("mistral", "prefers_longer"), ("llama", "weak_on_count")} & found


def test_kinds_come_from_the_truth_and_labels_from_the_labelled_source(report, where):
    world = read_truth(next(where.root.glob("world-*")))
    by_kind = report["experts"]["ensemble"]["by_kind"]
    assert set(by_kind) == {truth.kind for truth in world.values()}
    assert sum(group["accuracy"]["n"] for group in by_kind.values()) == 600
    assert set(report["experts"]["ensemble"]["by_source"]) == {"labelled"}
    assert set(report["label_free"]["llama"]["agrees_with_source"]) == {"labelled", "pairs", "ratings"}
    assert report["training"]["coverage"]["n"] > 60
    assert report["training"]["precision"]["value"] > 0.8


@pytest.mark.ray
def test_the_command_prints_findings_and_writes_figures_and_json(where, tmp_path):
    file = tmp_path / "audit.json"
    done = subprocess.run(
        [CAREVL, "audit", where.root, "--json", file, "--rewrites", "6"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"llama prefers longer responses: a doubling of length .* \(0\.\d\d to 0\.\d\d\)", done.stdout)
    figures = json.loads(file.read_text())
    assert {(name, rewrite) for name, style in figures["style"].items() for rewrite in style} == {
        (name, rewrite) for name in ("llama", "qwen2", "mistral") for rewrite in REWRITES
    }
    written = {found.name for found in (where.root / "figures").iterdir()}
    assert written == {f"{name}.{kind}" for name in ("reliability", "coverage", "agreement") for kind in ("png", "svg")}


@pytest.fixture
def later(where, tmp_path):
    """The directory of such a run that a later version wrote, with a judge that it has published."""
    root = tmp_path / "run"
    shutil.copytree(where.root, root, ignore=shutil.ignore_patterns("figures", "run.lock"))
    file = root / "settings.yaml"
    file.write_text(file.read_text().replace(f"version {VERSION}", f"version {VERSION + 1}"))
    _publish(root / "judge")
    return root


def _publish(judge):
    shutil.copytree(locate("miniworld:judge"), judge)
    (judge / "judge.json").write_text("{}")
    (judge / "README.md").write_text("# A judge\n")


def _audit(*words):
    return CliRunner().invoke(app, ["audit", *map(str, words)])


def _times(root):
    return {file: file.stat().st_mtime_ns for file in root.rglob("*")}


def test_nothing_is_written_in_a_run_of_a_later_version(later):
    before = _times(later)
    ended = _audit(later, "--rewrites", "0")
    assert "written by a later carevl" in str(ended.exception)
    assert "llama prefers longer responses" in ended.output
    assert _times(later) == before


def test_nothing_is_written_beside_a_judge_in_a_run_of_a_later_version(later):
    before = _times(later)
    ended = _audit(later, "--judge", later / "judge", "--pairs", "3", "--engine", "transformers")
    assert "written by a later carevl" in str(ended.exception)
    assert "3 of 3 pairs have a verdict" in ended.output
    assert _times(later) == before


def test_nothing_is_drawn_in_a_run_of_a_later_version(later):
    [world] = later.glob("world-*")
    (world / "world.json").unlink()
    before = _times(later)
    assert "written by a later carevl" in str(_audit(later, "--rewrites", "0").exception)
    assert _times(later) == before


def test_a_judge_is_asked_about_labelled_pairs_of_the_run_with_and_without_lines(where, tmp_path):
    published = tmp_path / "judge"
    _publish(published)
    report = audit_judge(where.root, str(published), 3, lambda _: None, engine="transformers")
    keep_beside_judge(report)
    assert (report["pairs"], report["read"]) == (3, 3)
    for kind in LINES:
        assert report["lines"][kind]["changed"]["n"] == report["lines"][kind]["right"]["n"] == 6
    assert "On 3 pairs of the run" in (published / "README.md").read_text()


def test_pairs_are_labelled_where_there_are_labels_and_shown_in_either_order(where):
    [directory] = (where.root / "ingest").iterdir()
    pairs = sample_pairs(Ingested(directory), 40, 0, 64)
    assert len(pairs) == 42  # 14 of every part
    assert {pair.right for pair in pairs} == {0, 1}
    assert all(image.width * image.height <= 64 for pair in pairs for image in pair.images)
    assert len(sample_pairs(Ingested(directory), 100_000, 0, 64)) > 600  # the others too


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--judge", "j", "--rewrites", "0"], "--rewrites is for experts"),
        (["--judge", "http://localhost:1/v1"], "audit what it serves"),
        (["--judge", "nowhere/of/judge"], "there is no such directory"),
        (["--pairs", "3"], "--pairs and --engine are for a judge"),
        (["--engine", "vllm"], "--pairs and --engine are for a judge"),
    ],
)
def test_what_cannot_be_audited_is_refused(options, problem, where, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["carevl", "audit", str(where.root), *options])
    with pytest.raises(SystemExit):
        run_here()
    assert problem in capsys.readouterr().err


def test_a_directory_without_a_run_and_an_unfinished_run_are_refused(where, tmp_path):
    with pytest.raises(RunError, match=r"holds no settings\.yaml"):
        audit(tmp_path, 0, lambda _: None)
    settings = load_settings("mini", [*SETTINGS, "captioner.prompt=Say what you see."])
    unfinished = Run(tmp_path / "run")
    keys = _ingested(settings, unfinished)
    unfinished.table(keys["ingest"]).finish({"cause": dict(keys["ingest"].fingerprint_inputs)})
    with pytest.raises(RunError, match=r"caption is not there .* carevl run .*settings\.yaml --run-dir"):
        audit(unfinished.root, 0, lambda _: None)

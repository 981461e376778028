"""A run on three mixed sources ends with a judge that learned from all of them, and goes on where it was."""

import json
import shutil
from collections import Counter

import pytest

from carevl.judging.turns import Turn
from carevl.pipeline.run import run_pipeline
from carevl.reward_model import RewardModel
from carevl.settings.loader import load_settings
from carevl.store.ingested import Ingested
from carevl.store.run import Run
from carevl.store.table import Table
from tests.helpers.mixed_sources import N, write_judge_set, write_sources
from tests.helpers.small_run import SMALL

pytestmark = [pytest.mark.nightly, pytest.mark.train]


def _settings(files, *more):
    sources = [{"name": name, "path": str(file)} for name, file in files.items()]
    labelled = {"path": "miniworld:calibration/rlaif_v.parquet", "labels": True, "split": "calibration"}
    declared = json.dumps([*sources, labelled])
    own = [f"data.sources={declared}", "router.threshold=0.6", "select.min_gap=0.05", "benchmarks=[]", *more]
    return load_settings("mini", [*SMALL[:-3], *own, "cluster.num_cpus=2"])


@pytest.fixture(scope="module")
def mixed(ray, tmp_path_factory):
    directory = tmp_path_factory.mktemp("mixed")
    files, critic = write_sources(directory), write_judge_set(directory)
    settings, run = _settings(files, f"data.judge_sets=[{{path: {critic}}}]"), Run(directory / "run")
    return settings, run, run_pipeline(settings, run, lambda _: None, "dpo")


def _kinds(run, stage, *below):
    """Rows of a table by how many images their items show."""
    [ingest], [table] = (run.root / "ingest").iterdir(), (run.root / stage).iterdir()
    shown = {row["item_id"]: len(row["images"]) for row in Ingested(ingest).items.read().to_pylist()}
    return Counter(shown[row["item_id"]] for row in Table(table.joinpath(*below)).read().to_pylist())


def test_every_kind_of_item_reaches_every_stage_without_an_error(mixed):
    _, run, done = mixed
    assert {stage.name: stage.errors for stage in done if stage.errors} == {}
    assert _kinds(run, "route") == {0: N, 1: N + SMALL_LABELLED, 2: N}
    asked = [_kinds(run, "demonstrate", "judgments"), _kinds(run, "sample")]
    assert all({1, 2} <= kinds.keys() for kinds in asked)  # items of text are routed alike: they are so much alike
    assert asked[0].keys() | asked[1].keys() == {0, 1, 2}
    targets = sum(_kinds(run, "demonstrate", "targets").values())
    assert targets > 20
    [trained] = [stage for stage in done if stage.name == "sft"]
    assert trained.rows_in == targets + 4  # and the judgments from elsewhere
    assert _kinds(run, "select")


SMALL_LABELLED = 40
"""Items of the labelled source: one for every calibration image."""


def test_the_judge_answers_about_any_number_of_images(mixed):
    from PIL import Image

    _, run, _ = mixed
    [trained] = (run.root / "dpo").iterdir()
    judge = RewardModel(str(trained / "judge"), engine="transformers")
    picture = Image.new("RGB", (96, 96), "red")
    questions = ["How many crosses?", (Turn("user", "Is  like ?", (3, 9)),), "What is 2 and 2?"]
    judgments = judge.judge_all([picture, [picture, picture], []], questions, [["One.", "Two."]] * 3)
    assert len(judgments) == 3


def test_a_row_that_is_added_costs_its_own_captions_scores_and_no_others(mixed, tmp_path):
    settings, run, _ = mixed
    other = tmp_path / "run"
    shutil.copytree(run.root, other)
    [_, several, *_] = settings.data.sources
    more = tmp_path / "more"
    files = write_sources(more, N)
    lines = files["several"].read_text().splitlines()
    row = json.loads(lines[0])
    row["prompt"][0]["content"] = "Can you see <image>?"
    grown = tmp_path / "several.jsonl"
    shutil.copytree(more / "pictures", tmp_path / "pictures")
    grown.write_text("\n".join([*lines, json.dumps(row)]) + "\n")
    sources = [s.model_copy(update={"path": str(grown)}) if s == several else s for s in settings.data.sources]
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"sources": sources})})
    run_pipeline(settings, Run(other), lambda _: None, "route")
    for stage, taken in (("caption", 0), *((f"score/{expert.name}", 2) for expert in settings.experts)):
        manifest = Run(other).latest(stage)
        assert manifest is not None
        assert manifest["rows_out"] - manifest.get("rows_taken", 0) == taken, stage

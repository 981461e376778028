"""A new table takes over the rows of earlier tables that come out alike, and asks for the rest."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from carevl.models.engines.base import Engine, Generation
from carevl.pipeline.keys import stage_keys
from carevl.pipeline.retry import retry_failed_rows
from carevl.pipeline.run import run_pipeline
from carevl.settings.loader import fill, load_settings
from carevl.settings.tree import Settings
from carevl.stages import STAGES
from carevl.store.run import Run
from tests.helpers.small_run import SMALL

COLOURS = ("red", "green", "blue", "white", "black", "yellow")


def _png(colour):
    data = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def settings(tmp_path):
    """Those of a run whose source has a row for each of some pictures."""
    data = tmp_path / "data"
    data.mkdir()
    for colour in COLOURS:
        (data / f"{colour}.png").write_bytes(_png(colour))
    _write(data, COLOURS)
    sources = f"data.sources=[{{path: {data / 'rows.jsonl'}}}]"
    settings = load_settings("mini", [*SMALL, "benchmarks=[]", "max_error_fraction=1", sources])
    tree = settings.model_dump(mode="json")
    return fill(Settings, tree | {"experts": tree["experts"][:1]}, [])


def _write(data, colours):
    rows = [
        {"image": f"{name}.png", "question": "What is it?", "chosen": "A square.", "rejected": "A dog."}
        for name in colours
    ]
    (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _counts(settings, run, stages=("caption", "score/")):
    """Return rows and rows taken of each table."""
    keys = stage_keys(settings, run)
    manifests = {name: run.table(key).manifest for name, key in keys.items() if name.startswith(stages)}
    return {name: (facts["rows_out"], facts["rows_taken"]) for name, facts in manifests.items()}


@pytest.mark.nightly
def test_one_more_row_costs_one_caption_and_its_scores(ray, settings, tmp_path):
    run = Run(tmp_path / "run")
    _write(tmp_path / "data", COLOURS[:-1])
    run_pipeline(settings, run, lambda _: None, "score")
    assert set(_counts(settings, run).values()) == {(5, 0), (10, 0)}
    _write(tmp_path / "data", COLOURS)
    lines = []
    run_pipeline(settings, run, lines.append, "score")
    assert set(_counts(settings, run).values()) == {(6, 5), (12, 10)}
    assert any("5 of them from earlier tables" in line for line in lines)
    undisturbed = Run(tmp_path / "other")
    run_pipeline(settings, undisturbed, lambda _: None, "score")
    for name, key in stage_keys(settings, run).items():
        if name.startswith(("caption", "score/")):
            other = undisturbed.table(stage_keys(settings, undisturbed)[name])
            assert run.table(key).read().equals(other.read())


def test_an_image_that_is_put_back_costs_one_caption(ray, settings, tmp_path):
    run = Run(tmp_path / "run")
    picture = tmp_path / "data" / "red.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:60])
    run_pipeline(settings, run, lambda _: None, "score")
    picture.write_bytes(whole)
    retry_failed_rows(settings, run, lambda _: None)
    assert set(_counts(settings, run).values()) == {(6, 5), (12, 10)}


def test_a_model_that_is_asked_otherwise_is_asked_all(ray, settings, tmp_path):
    run = Run(tmp_path / "run")
    run_pipeline(settings, run, lambda _: None, "caption")
    other = fill(Settings, settings.model_dump(mode="json"), ["captioner.max_tokens=100"])
    run_pipeline(other, run, lambda _: None, "caption")
    assert _counts(other, run, ("caption",)) == {"caption": (6, 0)}


def test_pairs_that_change_sides_take_their_judgments_along(small_run, tmp_path):
    run = small_run.copy(tmp_path)
    settings = fill(Settings, small_run.settings.model_dump(mode="json"), ["router.threshold=0.8"])
    before = _judgments(small_run.run.table(stage_keys(small_run.settings, small_run.run)["demonstrate"]))
    run_pipeline(settings, run, lambda _: None, "demonstrate")
    table = run.table(stage_keys(settings, run)["demonstrate"])
    after = _judgments(table)
    taken = {request: text for request, text in after.items() if request in before}
    assert 0 < len(taken) < len(before)
    assert taken == {request: before[request] for request in taken}
    assert table.manifest["rows_taken"] == len(taken)


def _judgments(table):
    rows = type(table)(table.directory / "judgments").read().to_pylist()
    return {(row["item_id"], row["task"], tuple(row["order"]), row["sample"]): row["text"] for row in rows}


def _write_benchmark(data, colours):
    pair = {"question": "What is it?", "responses": ["A square.", "A dog."], "better": 0}
    rows = [pair | {"id": colour, "image": f"{colour}.png"} for colour in colours]
    (data / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for colour in colours:
        (data / f"{colour}.png").write_bytes(_png(colour))


def _predictions(settings, run):
    """Return the judges' answers in the order in which they are stored."""
    tables = {name: run.table(key) for name, key in stage_keys(settings, run).items() if name.startswith("evaluate/")}
    return {name: table.read().drop_columns("probability").to_pylist() for name, table in tables.items()}


@pytest.mark.nightly
def test_one_more_row_of_a_benchmark_costs_its_questions(small_run, tmp_path):
    """Each judge is asked them and nothing else; so it is with another benchmark."""
    run = small_run.copy(tmp_path)
    [known] = {len(rows) for rows in _predictions(small_run.settings, run).values()}
    tree, lines = small_run.settings.model_dump(mode="json"), []
    own = {"name": "pairwise", "path": str(tmp_path / "pairs.jsonl"), "protocols": ["strict"]}
    settings = fill(Settings, tree | {"benchmarks": [*tree["benchmarks"], own]}, [])
    _write_benchmark(tmp_path, COLOURS[:2])
    run_pipeline(settings, run, lines.append)
    assert set(_counts(settings, run, ("evaluate/",)).values()) == {(known + 4, known)}
    assert any(line.startswith("evaluate/base") and f"{known} of them from earlier tables" in line for line in lines)
    _write_benchmark(tmp_path, COLOURS[:3])
    run_pipeline(settings, run, lines.append)
    assert set(_counts(settings, run, ("evaluate/",)).values()) == {(known + 6, known + 4)}
    (tmp_path / "other").mkdir()
    others = {stage.name for stage in STAGES if stage.tables(settings) and stage.name != "evaluate"}
    undisturbed = small_run.copy(tmp_path / "other", *others)
    run_pipeline(settings, undisturbed, lambda _: None)
    assert set(_counts(settings, undisturbed, ("evaluate/",)).values()) == {(known + 6, 0)}
    assert _predictions(settings, run) == _predictions(settings, undisturbed)


def test_a_change_that_changes_nothing_stops_there(small_run, tmp_path):
    run = small_run.copy(tmp_path)
    margins = [row["probability"] for row in run.table(stage_keys(small_run.settings, run)["route"]).read().to_pylist()]
    assert min(abs(margin - 0.7) for margin in margins if margin is not None) > 1e-7
    settings = fill(Settings, small_run.settings.model_dump(mode="json"), ["router.threshold=0.70000001"])
    lines = []
    done = run_pipeline(settings, run, lines.append)
    actions = {report.name: report.action for report in done}
    assert actions.pop("route") == "ran"
    assert set(actions.values()) == {"skipped"}
    assert "route            came out as before; what was made from that stays" in lines


class Echo(Engine):
    """Says the colour of a picture's first pixel."""

    name = "echo"

    def generator(self, model):
        del model
        return self

    def scorer(self, model, *, batch_tokens, parity_tolerance):
        raise NotImplementedError

    def generate(self, requests, **_):
        return [Generation(str(request.images[0].getpixel((0, 0))), 3, False) for request in requests]


class Lengths:
    """Scores a response by its length."""

    def score(self, conversations):
        return [float(len(response)) for _, response in conversations]


ECHO = Echo()
MANY = 10_000


@pytest.mark.nightly
def test_one_of_ten_thousand_rows_that_changes_costs_one_caption_and_its_scores(ray, tmp_path):
    data, here = tmp_path / "data", "tests.pipeline.test_rows_taken"
    data.mkdir()
    names = [f"{n:05d}" for n in range(MANY)]
    for n, name in enumerate(names):
        (data / f"{name}.png").write_bytes(_png((n % 256, n // 256, 0)))
    _write(data, names)
    sources = f"data.sources=[{{path: {data / 'rows.jsonl'}}}]"
    expert = f"experts=[{{name: lengths, kind: python, path: '{here}:Lengths'}}]"
    engine = f"captioner.engine={here}:ECHO"
    settings = load_settings("mini", [*SMALL, "benchmarks=[]", "data.near_duplicates=ignore", sources, expert, engine])
    run = Run(tmp_path / "run")
    run_pipeline(settings, run, lambda _: None, "score")
    assert _counts(settings, run) == {"caption": (MANY, 0), "score/lengths": (2 * MANY, 0)}
    (data / "other.png").write_bytes(_png((9, 9, 9)))
    _write(data, [*names[:7], "other", *names[8:]])
    run_pipeline(settings, run, lambda _: None, "score")
    assert _counts(settings, run) == {"caption": (MANY, MANY - 1), "score/lengths": (2 * MANY, 2 * MANY - 2)}

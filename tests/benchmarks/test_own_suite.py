"""A benchmark of a user's own, by import path: in commands, in settings, and in actors that have to import it anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from carevl import cli
from carevl.benchmarks.baselines import judge_trivially
from carevl.benchmarks.predictions import to_table
from carevl.benchmarks.run import EvalSet, JudgeRun, predict
from carevl.benchmarks.suite import Suite
from carevl.benchmarks.suites import SUITES, describe_suites
from carevl.errors import UserError
from carevl.pipeline.results import judges
from carevl.settings.data import Benchmark
from carevl.settings.loader import load_settings
from carevl.settings.models import Judge
from carevl.store.run import Run
from carevl.store.table import Table

PAGE = Path(__file__).parents[2] / "docs/benchmarks.md"


@pytest.fixture
def importable(own_suite, tmp_path, monkeypatch):
    """The page's module where this process can import it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield own_suite
    for module in ("captions", "twin"):
        sys.modules.pop(module, None)


def test_the_example_of_the_page_runs(importable, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["carevl", *importable])
    with pytest.raises(SystemExit) as ended:
        cli.app.run_here()
    assert not ended.value.code
    figures = json.loads(Path("runs/captions/figures.json").read_text())
    assert (figures["benchmark"], figures["rows"]) == ("captions", 1)
    assert figures["judges"]["longer"]["strict"]["figures"]["photo"]["value"] == 1
    assert "captions: 1 rows" in capsys.readouterr().out


def test_settings_name_it_by_its_path_and_results_by_its_name(importable, tmp_path):
    path = importable[importable.index("--benchmark") + 1]
    benchmark = Benchmark(name=path, path=str(tmp_path / "captions.jsonl"))
    settings = load_settings("mini", []).model_copy(update={"benchmarks": [benchmark]})
    suite, table = SUITES[path], Table(tmp_path / "predictions")
    rows = suite.load(tmp_path / "captions.jsonl")
    questions = [question for protocol in benchmark.protocols for question in suite.questions(rows, protocol)]
    table.write(0, to_table(judge_trivially("longer", suite, rows, questions)))
    results = judges(settings, Run(tmp_path / "run"), {"base": table})["base"]
    assert list(results["captions"]) == ["official_scorer", "strict"]
    assert results["captions"]["strict"]["overall"]["value"] == 1


@pytest.mark.ray
def test_actors_import_it_and_ask_the_shipped_judge(own_suite, tmp_path):
    [row] = (tmp_path / "captions.jsonl").read_text().splitlines()
    rows = [json.loads(row) | {"id": n, "worse": worse} for n, worse in enumerate(("A dog.", "Two blue circles."))]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own_suite[own_suite.index("--judge") + 1] = "miniworld:judge"
    command = [sys.executable, "-c", "from carevl.cli import main; main()", *own_suite]
    command += ["--engine", "transformers", "--set", "max_tokens=64"]
    path = os.pathsep.join([str(tmp_path), str(PAGE.parents[1])])
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / own_suite[own_suite.index("--out") + 1]
    predictions = pq.read_table(out / "predictions.parquet").to_pylist()
    assert {prediction["benchmark"] for prediction in predictions} == {"captions"}
    assert len(predictions) == 2 * 2 * len(rows)  # both orders under two protocols
    assert all(prediction["text"] and prediction["error"] is None for prediction in predictions)
    assert json.loads((out / "figures.json").read_text())["judges"]["miniworld:judge"]["strict"]["errors"] == 0


def test_two_suites_of_one_name_are_refused(importable, tmp_path):
    (tmp_path / "twin.py").write_text("from captions import Captions\n\n\nclass Twin(Captions):\n    pass\n")
    judge = [JudgeRun(Judge(path="http://127.0.0.1:9/v1#m"), "j", Table(tmp_path / "t"))]
    eval_sets = [EvalSet(name, [], ["strict"]) for name in ("captions:Captions", "twin:Twin")]
    with pytest.raises(UserError, match="captions:Captions and twin:Twin are both called captions; rename one"):
        predict(judge, eval_sets, lambda *_: None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vl-rewardbanch", "there is no benchmark 'vl-rewardbanch'; did you mean vl-rewardbench?"),
        ("nowhere:SUITE", "benchmark nowhere:SUITE: nowhere cannot be imported"),
        ("json:dumps", "benchmark json:dumps: it is no carevl Suite, but function"),
    ],
)
def test_a_name_that_is_no_benchmark_is_refused_in_a_sentence(name, message):
    with pytest.raises(UserError) as refused:
        SUITES[name]
    assert message in str(refused.value)


def test_a_suite_without_a_name_is_refused_where_it_is_defined():
    with pytest.raises(TypeError, match=r'benchmark .*Nameless: set name = "…" in the class'):

        class Nameless(Suite):
            summary = "none"


def test_every_registered_suite_has_a_line_a_section_and_tests():
    assert all(0 < len(suite.summary) <= 70 for suite in SUITES.values())
    assert all(f"{name} ({suite.summary})" in describe_suites() for name, suite in SUITES.items())
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"### `{name}`" in page for name in SUITES)
    tests = Path(__file__).parent / "suites"
    assert all((tests / f"test_{name.replace('-', '_')}.py").is_file() for name in SUITES)

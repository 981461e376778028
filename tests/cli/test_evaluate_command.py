"""`carevl evaluate` from end to end, for judges that need no model, and what it says to mistakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from carevl import cli
from carevl.benchmarks.command import FIGURES, PREDICTIONS, EvalRequest, compare, evaluate, rescore
from carevl.benchmarks.data import load
from carevl.errors import UserError

PAIR = {"id": "RLHF-V-1", "query": "q", "response": ["a longer answer", "short"], "human_ranking": [0, 1]}


@pytest.fixture(scope="module")
def world(small_world):
    return small_world


@pytest.fixture
def pairs(tmp_path):
    """Five pairs of which the second names an image that is there and the others one that is not."""
    from PIL import Image

    Image.new("RGB", (30, 30)).save(tmp_path / "1.png")
    rows = [PAIR | {"id": f"RLHF-V-{n}", "image": f"{n}.png"} for n in range(5)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def _quiet(_):
    pass


def _figures(out):
    return json.loads((out / FIGURES).read_text())


def _carevl(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["carevl", "evaluate", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_a_trivial_judge_from_the_command_line_and_again_from_its_predictions(world, tmp_path, monkeypatch, capsys):
    data = ["--benchmark", "vl-rewardbench", "--data", world / "dev/vl_rewardbench.parquet"]
    assert not _carevl(monkeypatch, "--judge", "longer", *data, "--out", tmp_path / "out")
    first = capsys.readouterr().out
    assert "official_scorer" in first
    assert "strict" in first
    result = _figures(tmp_path / "out")
    assert result["judges"]["longer"]["strict"]["figures"] == result["baselines"]["longer"]["strict"]
    assert not _carevl(monkeypatch, "--from", tmp_path / "out", *data, "--out", tmp_path / "again")
    assert capsys.readouterr().out == first
    assert _figures(tmp_path / "again") == result


def test_several_protocols_and_draws_are_asked_as_told(world, tmp_path):
    data = load("vl-rewardbench", world / "dev/vl_rewardbench.parquet")
    asking = EvalRequest("random", protocols=["strict", "official"], draws=3)
    lines = list(evaluate(data, asking, tmp_path, _quiet))
    [flagged] = [" ".join(line.split()) for line in lines if line.startswith("GPT-4o")]
    assert flagged == "GPT-4o 65.8 62.4 49.1 67.6 70.5 inconsistent: its groups give 65.6 and 62.4"
    rows = pq.read_table(tmp_path / PREDICTIONS).to_pylist()
    assert {row["protocol"] for row in rows} == {"official", "strict"}
    assert {row["sample"] for row in rows if row["protocol"] == "official"} == {0, 1, 2}


def test_missing_images_are_counted_named_and_left_out_only_when_asked(pairs, tmp_path):
    data = load("vl-rewardbench", pairs)
    with pytest.raises(UserError, match=r"4 of 5 rows have no image: RLHF-V-0#\w+, RLHF-V-2.*--allow-missing-images"):
        evaluate(data, EvalRequest("nobody/knows"), tmp_path, _quiet)
    assert len(list(evaluate(data, EvalRequest("longer"), tmp_path / "longer", _quiet))) > 10
    assert _figures(tmp_path / "longer")["rows"] == 5
    kept = data.without_missing_images(["strict"], lambda _: True, allowed=True)
    assert [row.key.partition("#")[0] for row in kept.rows] == ["RLHF-V-1"]
    assert len(kept.excluded) == 4
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError, match="nothing is left"):
        data.without_missing_images(["strict"], lambda _: True, allowed=True)


def test_predictions_of_some_rows_are_scored_only_when_the_others_have_no_image(pairs, tmp_path):
    data = load("vl-rewardbench", pairs)
    kept = data.without_missing_images(["strict"], lambda _: True, allowed=True)
    list(evaluate(kept, EvalRequest("longer"), tmp_path / "some", _quiet))
    with pytest.raises(UserError, match="4 of 5 rows have no image"):
        rescore(data, tmp_path / "some", None, None, False)
    lines = list(rescore(data, tmp_path / "some", None, tmp_path / "again", True))
    assert lines[0] == "vl-rewardbench: 1 rows"
    assert lines[1].startswith("left out, their images are missing: 4 rows: RLHF-V-0#")
    assert len(_figures(tmp_path / "again")["excluded"]) == 4


def test_images_are_not_looked_for_outside_their_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"")
    (tmp_path / "data").mkdir()
    file = tmp_path / "data/rows.jsonl"
    file.write_text(json.dumps(PAIR | {"image": "../secret.png"}))
    [row] = load("vl-rewardbench", file).rows
    assert not row.image.present
    [row] = load("vl-rewardbench", file, tmp_path).rows
    assert not row.image.present
    file.write_text(json.dumps(PAIR | {"image": "secret.png"}))
    [row] = load("vl-rewardbench", file, tmp_path).rows
    assert row.image.present


def test_text_that_no_table_takes_is_replaced(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(PAIR | {"query": "a\ud800b\0c"}))
    list(evaluate(load("vl-rewardbench", file), EvalRequest("first"), tmp_path / "out", _quiet))
    assert load("vl-rewardbench", file).rows[0].question == "a\ufffdb\ufffdc"


def test_official_results_are_scored_as_they_are(tmp_path):
    file, results = tmp_path / "rows.jsonl", tmp_path / "gpt.jsonl"
    file.write_text(json.dumps(PAIR))
    answer = {
        "ranking": [0, 1],
        "meta": {"filter_choice": "Overall Judgment: Answer 1 is better", "random_number": 0},
    }
    results.write_text(json.dumps(PAIR | answer))
    list(rescore(load("vl-rewardbench", file), results, None, tmp_path, False))
    result = _figures(tmp_path)["judges"]["gpt"]
    assert list(result) == ["official"]
    assert result["official"]["figures"]["overall"]["value"] == 1


def test_two_judges_are_compared_on_the_same_rows(world, tmp_path):
    data = load("vl-rewardbench", world / "dev/vl_rewardbench.parquet")
    for judge in ("longer", "first"):
        list(evaluate(data, EvalRequest(judge), tmp_path / judge, _quiet))
    lines = list(compare(data, (tmp_path / "longer", tmp_path / "first"), None, False))
    longer = _figures(tmp_path / "longer")["judges"]["longer"]["strict"]["figures"]["overall"]["value"]
    strict = lines[next(n for n, line in enumerate(lines) if line.startswith("strict")) + 1]
    assert strict.split()[:2] == ["overall", f"{longer:.3f}"]  # `first` is never right strictly
    assert lines[-1].startswith(f"right only by {tmp_path / 'longer'}: {round(longer * 480)}; only by")


PAIRS = "--benchmark vl-rewardbench --data rows.jsonl"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--judge longer --benchmark vl-reward --data rows.jsonl", "there is no benchmark 'vl-reward'"),
        ("--judge longer --benchmark vl-rewardbench --data no.jsonl --protocol stict", "did you mean strict?"),
        ("--judge longer --benchmark vl-rewardbench --data no.jsonl --engine vlm", "did you mean vllm?"),
        ("--judge longer --benchmark vl-rewardbench --data no.jsonl", "no benchmark data at no.jsonl"),
        ("--judge longer --benchmark vl-rewardbench --data empty.jsonl --out o", "has no rows"),
        (f"--judge longer {PAIRS}", "give --out DIR"),
        (PAIRS, "give one of --judge"),
        (f"--from x {PAIRS}", "no predictions at x"),
        ("--from p.parquet --benchmark mllm-judge --data pair.jsonl", "holds predictions of vl-rewardbench"),
        (f"--judge longer --protocol lax --out o {PAIRS}", "no protocol 'lax'; there are official, official_scorer,"),
        (f"--judge m --set max_token=1 --out o {PAIRS}", "did you mean max_tokens?"),
    ],
)
def test_mistakes_are_explained_in_one_line(arguments, message, tmp_path, world, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(json.dumps(PAIR))
    Path("empty.jsonl").write_text("")
    Path("pair.jsonl").write_text((world / "dev/mllm_judge/pair.jsonl").read_text())
    list(evaluate(load("vl-rewardbench", Path("rows.jsonl")), EvalRequest("first"), Path("p"), _quiet))
    Path("p", PREDICTIONS).rename("p.parquet")
    assert _carevl(monkeypatch, *arguments.split()) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line

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
        cli.app.run_here()
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
    kept = data.without_missing_images(["strict"], allowed=True)
    assert [row.key.partition("#")[0] for row in kept.rows] == ["RLHF-V-1"]
    assert len(kept.excluded) == 4
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError, match="nothing is left"):
        data.without_missing_images(["strict"], allowed=True)


def test_predictions_of_some_rows_are_scored_and_say_of_how_many(pairs, tmp_path):
    data = load("vl-rewardbench", pairs)
    kept = data.without_missing_images(["strict"], allowed=True)
    list(evaluate(kept, EvalRequest("longer"), tmp_path / "some", _quiet))
    lines = list(rescore(data, tmp_path / "some", None, tmp_path / "again"))
    assert lines[0] == "vl-rewardbench: 5 rows"
    of_rows = "longer: figures over 1 of 5 rows (4 without a prediction)"
    assert [line for line in lines if "figures over" in line] == [f"{of_rows}, k = 5", of_rows]
    again, first = _figures(tmp_path / "again"), _figures(tmp_path / "some")
    assert again["judges"] == first["judges"]
    assert again["baselines"] == first["baselines"]
    assert (again["rows"], again["judges"]["longer"]["strict"]["rows"]) == (5, 1)


def test_images_are_not_looked_for_outside_their_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"")
    (tmp_path / "data").mkdir()
    file = tmp_path / "data/rows.jsonl"
    file.write_text(json.dumps(PAIR | {"image": "../secret.png"}))
    [row] = load("vl-rewardbench", file).rows
    assert not row.images[0].present
    [row] = load("vl-rewardbench", file, tmp_path).rows
    assert not row.images[0].present
    file.write_text(json.dumps(PAIR | {"image": "secret.png"}))
    [row] = load("vl-rewardbench", file, tmp_path).rows
    assert row.images[0].present


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
    list(rescore(load("vl-rewardbench", file), results, None, tmp_path))
    result = _figures(tmp_path)["judges"]["gpt"]
    assert list(result) == ["official"]
    assert result["official"]["figures"]["overall"]["value"] == 1


def test_two_judges_are_compared_on_the_same_rows(world, tmp_path):
    data = load("vl-rewardbench", world / "dev/vl_rewardbench.parquet")
    for judge in ("longer", "first"):
        list(evaluate(data, EvalRequest(judge), tmp_path / judge, _quiet))
    lines = list(compare(data, (tmp_path / "longer", tmp_path / "first"), None))
    longer = _figures(tmp_path / "longer")["judges"]["longer"]["strict"]["figures"]["overall"]["value"]
    strict = lines[next(n for n, line in enumerate(lines) if line.startswith("strict")) + 1]
    assert strict.split()[:2] == ["overall", f"{longer:.3f}"]  # `first` is never right strictly
    assert lines[-1].startswith(f"right only by {tmp_path / 'longer'}: {round(longer * 480)}; only by")


def _official(answers):
    """An official result file's line for each answer of each row."""
    meta = {"ranking": [0, 1]}
    lines = [
        PAIR | {"id": f"RLHF-V-{n}"} | meta | {"meta": {"filter_choice": text, "random_number": 0}}
        for n, texts in enumerate(answers)
        for text in texts
    ]
    return "\n".join(map(json.dumps, lines))


def test_k_is_not_lowered_by_a_row_with_fewer_draws(tmp_path):
    right, wrong = ("Overall Judgment: Answer 1 is better", "Overall Judgment: Answer 2 is better")
    answers = [(right, right, right, wrong, wrong)] * 30 + [(right, right, wrong, wrong, wrong)] * 10 + [(right,)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(PAIR | {"id": f"RLHF-V-{n}"}) for n in range(41)))
    (tmp_path / "gpt.jsonl").write_text(_official(answers))
    data = load("vl-rewardbench", tmp_path / "rows.jsonl")
    lines = list(rescore(data, tmp_path / "gpt.jsonl", None, tmp_path))
    score = _figures(tmp_path)["judges"]["gpt"]["official"]
    assert score["figures"]["overall"]["value"] == 31 / 41
    assert (score["k"], score["rows"], score["scored"], score["fewer_draws"]) == (5, 41, 41, 1)
    words = "gpt: figures over 41 of 41 rows, k = 5; 1 rows have fewer and are scored by those"
    assert words in lines
    list(rescore(data, tmp_path / "gpt.jsonl", 1, tmp_path))
    assert _figures(tmp_path)["judges"]["gpt"]["official"]["k"] == 1


def test_rows_that_leave_the_denominator_are_counted_and_quoted(tmp_path):
    right = "Overall Judgment: Answer 1 is better"
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(PAIR | {"id": f"RLHF-V-{n}"}) for n in range(5)))
    (tmp_path / "gpt.jsonl").write_text(_official([(right,), (right,), ("It depends.",), ("No verdict.",)]))
    data = load("vl-rewardbench", tmp_path / "rows.jsonl")
    lines = list(rescore(data, tmp_path / "gpt.jsonl", None, tmp_path))
    at = lines.index(
        "gpt: figures over 2 of 5 rows (2 without a verdict that counts; 1 without a prediction), "
        "k = 1; the benchmark draws 5"
    )
    assert lines[at + 1 : at + 5] == [
        "gpt: 4 asked, 4 answered, 2 parsed (50.0 %): 2 ok, 2 none",
        "gpt: 2 of 4 judgments have no verdict that can be read, such as",
        '  none: "It depends."',
        '  none: "No verdict."',
    ]
    score = _figures(tmp_path)["judges"]["gpt"]["official"]
    assert (score["rows"], score["scored"], score["figures"]["overall"]["value"]) == (4, 2, 1.0)


def test_a_row_that_was_asked_in_one_order_alone_is_not_scored_strictly(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(PAIR | {"id": f"RLHF-V-{n}"}) for n in range(3)))
    data = load("vl-rewardbench", tmp_path / "rows.jsonl")
    list(evaluate(data, EvalRequest("longer", protocols=["strict"]), tmp_path / "all", _quiet))
    table = pq.read_table(tmp_path / "all" / PREDICTIONS)
    pq.write_table(table.slice(0, 3), tmp_path / "cut.parquet")
    list(rescore(data, tmp_path / "cut.parquet", None, tmp_path))
    score = _figures(tmp_path)["judges"]["longer"]["strict"]
    assert (score["rows"], score["predictions"], score["k"]) == (1, 2, None)


def test_judges_are_compared_on_the_rows_that_both_answered(tmp_path):
    right, wrong = ("Overall Judgment: Answer 1 is better", "Overall Judgment: Answer 2 is better")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(PAIR | {"id": f"RLHF-V-{n}"}) for n in range(4)))
    (tmp_path / "a.jsonl").write_text(_official([(right,), (right,), (right,)]))
    (tmp_path / "b.jsonl").write_text(_official([(wrong,), ("No.",)]))
    data = load("vl-rewardbench", tmp_path / "rows.jsonl")
    lines = list(compare(data, (tmp_path / "a.jsonl", tmp_path / "b.jsonl"), None))
    a, b = (tmp_path / name for name in ("a.jsonl", "b.jsonl"))
    counted = f"over 2 of 4 rows that both answered: 2 count for {a}, 1 for {b}, k = 1; the benchmark draws 5"
    assert counted in lines
    assert lines[-1].startswith(f"right only by {a}: 1; only by {b}: 0")


def test_the_same_command_given_again_replaces_nothing(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(PAIR))
    data = load("vl-rewardbench", tmp_path / "rows.jsonl")
    list(evaluate(data, EvalRequest("longer"), tmp_path, _quiet))
    first = _figures(tmp_path)
    list(evaluate(data, EvalRequest("longer"), tmp_path, _quiet))
    assert _figures(tmp_path) == first
    table = pq.read_table(tmp_path / PREDICTIONS)
    pq.write_table(table.replace_schema_metadata(None), tmp_path / PREDICTIONS)  # as an earlier version wrote it
    list(evaluate(data, EvalRequest("longer"), tmp_path, _quiet))
    with pytest.raises(
        UserError, match="holds predictions of longer on vl-rewardbench that this command would replace"
    ):
        evaluate(data, EvalRequest("longer", protocols=["strict"]), tmp_path, _quiet)
    assert _figures(tmp_path) == first


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
        (f"--from p.parquet --judge longer {PAIRS}", "give one of --judge"),
        (f"--from p.parquet --protocol strict --engine vllm {PAIRS}", "--engine, --protocol does not apply to --from"),
        (f"--from p.parquet --max-error-fraction 0.05 {PAIRS}", "--max-error-fraction does not apply to --from"),
        (f"--compare p.parquet p.parquet --out o {PAIRS}", "--out does not apply to --compare"),
        (f"--judge longer --set max_tokens=1 --out o {PAIRS}", "--set does not apply to --judge longer"),
        (f"--judge longer --force-verdicts --out o {PAIRS}", "--force-verdicts does not apply to --judge longer"),
        (f"--judge longer --allow-missing-images --out o {PAIRS}", "--allow-missing-images does not apply to"),
        (f"--judge http://h/v1#m --engine vllm --out o {PAIRS}", "--engine does not apply to an endpoint"),
        (
            f"--judge http://h/v1#m --set dtype=auto --set pool.num_gpus=1 --out o {PAIRS}",
            "--set dtype, pool.num_gpus do",
        ),
        (f"--judge http://h/v1#m --set endpoint.timout=1 --out o {PAIRS}", "did you mean timeout?"),
        (f"--judge m --set endpoint.timeout=1 --out o {PAIRS}", "endpoint: m is none; an endpoint is written as"),
        (f"--judge longer --k 3 --protocol strict --out o {PAIRS}", "--k 3: vl-rewardbench draws nothing under strict"),
        (f"--from p.parquet --k 6 {PAIRS}", "--k 6: no row has more than 5 draws under official_scorer"),
        ("--from p.parquet --benchmark vl-rewardbench --data other.jsonl", "they are to RLHF-V-1#"),
        (
            "--compare p.parquet p.parquet --benchmark vl-rewardbench --data other.jsonl",
            "none of its answers is to one",
        ),
        (f"--compare p.parquet gpt.jsonl {PAIRS}", "gpt.jsonl has 1 rows under official, and no row of vl-rewardbench"),
        (
            "--from gpt.jsonl --benchmark vl-rewardbench --data other.jsonl",
            "to one of the 1 rows of --data, such as no#",
        ),
        (f"--from mute.jsonl {PAIRS}", '1 none, such as none: "I cannot say."'),
        (
            f"--judge first --protocol strict --out p {PAIRS}",
            "p/predictions.parquet holds predictions of longer on vl-",
        ),
        (f"--from p.parquet --out p {PAIRS}", "p/predictions.parquet is of other predictions than p.parquet"),
        (f"--judge m --images nowhere --out o {PAIRS}", "--images nowhere: there is no such folder"),
        (f"--judge p/judge --out o {PAIRS}", "p/judge: there is no such directory"),
        (f"--judge runs/base/judge --out o {PAIRS}", "runs/base/judge: there is no such directory; nor is it an id"),
        (f"--judge rows.jsonl --out o {PAIRS}", "rows.jsonl is a file; a model is a directory"),
        ("--judge org/m --out o --benchmark vl-rewardbench --data far.jsonl --images p", "looked for at "),
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
    Path("other.jsonl").write_text(json.dumps(PAIR | {"id": "no"}))
    Path("far.jsonl").write_text(json.dumps(PAIR | {"image": "1.png"}))
    meta = {"ranking": [0, 1], "meta": {"filter_choice": "Overall Judgment: Answer 1 is better", "random_number": 0}}
    Path("gpt.jsonl").write_text(json.dumps(PAIR | meta))
    meta["meta"]["filter_choice"] = "I cannot say."
    Path("mute.jsonl").write_text(json.dumps(PAIR | meta))
    list(evaluate(load("vl-rewardbench", Path("rows.jsonl")), EvalRequest("first"), Path("p"), _quiet))
    Path("p", PREDICTIONS).rename("p.parquet")
    list(evaluate(load("vl-rewardbench", Path("rows.jsonl")), EvalRequest("longer"), Path("p"), _quiet))
    assert _carevl(monkeypatch, *arguments.split()) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line

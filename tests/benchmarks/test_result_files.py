"""Result files of other harnesses, written small in their layouts; docs/benchmarks.md says where each was read."""

from __future__ import annotations

import csv
import json
import re
import sys

import pytest

from carevl import cli
from carevl.benchmarks.result_files import read_results
from carevl.benchmarks.suites import SUITES
from carevl.errors import UserError

VL = {"id": "RLHF-V-1", "query": "q", "response": ["good", "bad"], "image": "1.png"}
MLLM = {"id": 7, "image_path": "7.jpg", "original_dataset": "coco", "instruction": "q", "human": "A"} | {
    "pair_id": 1,
    "answer1": {"name": "m", "answer": "x"},
    "answer2": {"name": "n", "answer": "y"},
}
MULTIMODAL = {
    "ID": "a",
    "Text": "q",
    "Image": "i",
    "Output1": "x",
    "Output2": "y",
    "Better": "Output2",
    "Category": "vqa",
}
MM_RLHF = {"id": "1", "image": "long/1.png", "prompt": "q", "chosen": "good", "rejected": "bad"}
REWARDBENCH2 = {"id": "12", "subset": "Math", "prompt": "2 + 2?", "chosen": ["4"], "rejected": ["5", "3", "22"]}
FIRST_IS_BETTER = "Overall Judgment: Answer 1 is better"


@pytest.fixture
def read(tmp_path):
    """Read result records about some rows of a benchmark: the suite, its rows, and the predictions."""

    def load_both(name, rows, results, suffix="jsonl"):
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows if isinstance(rows, list) else [rows])))
        file = tmp_path / f"results.{suffix}"
        file.write_text("\n".join(map(json.dumps, results)))
        suite = SUITES[name]
        loaded = suite.load(tmp_path / "rows.jsonl")
        return suite, loaded, read_results(suite, file, loaded, "j")

    return load_both


@pytest.fixture
def figures(tmp_path, monkeypatch):
    """Score a result file through the command line: the figures under `official`, without intervals."""

    def score(name, rows, results):
        words = ["evaluate", "--from", results, "--benchmark", name, "--data", rows, "--out", tmp_path / "out"]
        monkeypatch.setattr(sys, "argv", ["carevl", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.app.run_here()
        assert not ended.value.code
        judges = json.loads((tmp_path / "out/figures.json").read_text())["judges"]
        [judge] = judges.values()
        return {figure: value["value"] for figure, value in judge["official"]["figures"].items()}

    return score


def _write(path, records):
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def _vl(text, random_number, **fields):
    return VL | {"ranking": [0, 1], "meta": {"filter_choice": text, "random_number": random_number}} | fields


def test_vl_rewardbench_results_are_draws_in_the_order_shown(read):
    results = [
        _vl(FIRST_IS_BETTER, 0),
        _vl(FIRST_IS_BETTER, 1),
        _vl(FIRST_IS_BETTER.replace("1", "2"), 1),
        _vl(FIRST_IS_BETTER, 0, id="other-1"),
    ]
    suite, rows, predictions = read("vl-rewardbench", VL | {"human_ranking": [0, 1]}, results)
    assert [(each.order, each.sample, each.winner) for each in predictions] == [
        ((0, 1), 0, 0),
        ((1, 0), 1, 1),
        ((1, 0), 2, 0),
    ]
    assert suite.score(rows, predictions, "official", draws=3).right.tolist() == [1]


def test_results_may_stand_under_a_0_and_be_null_there(read):
    results = [{"0": None}, {"0": _vl(FIRST_IS_BETTER, 0)}]
    _, _, predictions = read("vl-rewardbench", VL | {"human_ranking": [0, 1]}, results)
    assert [(each.order, each.sample, each.winner) for each in predictions] == [((0, 1), 0, 0)]


def test_results_over_swapped_responses_find_their_row(read):
    swapped = _vl(FIRST_IS_BETTER, 0, response=["bad", "good"], ranking=[1, 0])
    suite, rows, predictions = read("vl-rewardbench", VL | {"human_ranking": [0, 1]}, [swapped])
    assert predictions[0].order == (1, 0)
    assert suite.score(rows, predictions, "official", draws=1).right.tolist() == [0]


def _lmms_eval(row, text, **fields):
    """A sample as lmms-eval saves it: the prompt in `input`, the fields of the row left out."""
    swapped = sum(map(len, row["response"])) % 2
    first, second = row["response"][::-1] if swapped else row["response"]
    return {
        "doc_id": 0,
        "target": str(row["human_ranking"]),
        "filtered_resps": text,
        "doc_hash": "0",
        "vlreward_score": {"question_id": row["id"], "category": "hallucination", "score": 1.0},
        "input": f" You are …\n\nQuestion: {row['query']}\n\nAnswer 1: {first}\n\nAnswer 2: {second}\n\nPlease …",
    } | fields


def test_lmms_eval_samples_find_their_row_and_order_by_the_prompt(read):
    rows = [
        VL | {"human_ranking": [0, 1]},
        VL | {"human_ranking": [0, 1], "response": ["good", "poor"]},
    ]
    results = [_lmms_eval(rows[1], FIRST_IS_BETTER), _lmms_eval(rows[0], [FIRST_IS_BETTER, "no idea"])]
    _, loaded, predictions = read("vl-rewardbench", rows, results)
    assert [(each.key, each.order, each.sample, each.winner) for each in predictions] == [
        (loaded[1].key, (0, 1), 0, 0),
        (loaded[0].key, (1, 0), 0, 1),
        (loaded[0].key, (1, 0), 1, None),
    ]


def test_a_prompt_that_shows_other_responses_is_no_row_of_ours(read):
    row = VL | {"human_ranking": [0, 1]}
    other = _lmms_eval(row | {"response": ["good", "awful"]}, FIRST_IS_BETTER)
    assert read("vl-rewardbench", row, [other])[2] == []


def _vlmevalkit(path, rows, texts):
    """A TSV file as pandas writes it for VLMEvalKit: every cell quoted, lists as Python shows them, no image."""
    with path.open("w", newline="") as file:
        fields = ["index", "question", "response", "answer", "category", "prediction"]
        writer = csv.DictWriter(file, fields, delimiter="\t", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        for index, (row, text) in enumerate(zip(rows, texts, strict=True)):
            cells = (index, row["query"], row["response"], row["human_ranking"], "hallucination", text)
            writer.writerow(dict(zip(fields, cells, strict=True)))
    return path


def test_vlmevalkit_predictions_find_their_row_by_its_texts(tmp_path):
    rows = [
        VL | {"human_ranking": [1, 0], "response": ["it's bad\n\ttruly", "good"]},
        VL | {"human_ranking": [0, 1], "response": ["good", "poor"]},
        VL | {"human_ranking": [0, 1], "response": ["good", "poor"], "id": "RLHF-V-2"},
    ]
    suite = SUITES["vl-rewardbench"]
    loaded = suite.load(_write(tmp_path / "rows.jsonl", rows))
    written = [*rows, VL | {"human_ranking": [0, 1], "response": ["other", "rows"]}]
    file = _vlmevalkit(tmp_path / "model_VL-RewardBench.tsv", written, [FIRST_IS_BETTER] * 4)
    predictions = read_results(suite, file, loaded, "j")
    assert [(each.key, each.order, each.winner) for each in predictions] == [
        (loaded[0].key, (1, 0), 1),  # 15 + 4 characters: swapped
        (loaded[1].key, (0, 1), 0),
        (loaded[2].key, (0, 1), 0),
    ]


@pytest.mark.parametrize("response", ["good", "[" * 100_000])
def test_a_response_that_is_no_list_is_named(tmp_path, response):
    file = _write(tmp_path / "r.json", [{"index": 1, "question": "q", "response": response, "prediction": "x"}])
    with pytest.raises(ValueError, match=rf"r.json, row 1: response must be a list, found '{re.escape(response[:4])}"):
        read_results(SUITES["vl-rewardbench"], file, [], "j")


def test_mllm_judge_results_are_read(read):
    results = [MLLM | {"mllm_judge": text} for text in ("[[A]]", "[[C]]", "none")]
    _, _, predictions = read("mllm-judge", MLLM, results)
    assert [(each.sample, each.winner, each.status) for each in predictions] == [
        (0, 0, "ok"),
        (1, -1, "ok"),
        (2, None, "none"),
    ]


@pytest.mark.parametrize(
    ("judgement", "winner"),
    [(None, None), ([["B"]], 1), (["[[B]]"], 1), (["B"], 1), ("B", None), ([], None), (["A", "B"], None)],
)
def test_null_and_list_forms_of_mllm_judge(read, judgement, winner):
    _, _, [prediction] = read("mllm-judge", MLLM, [MLLM | {"mllm_judge": judgement}])
    assert prediction.winner == winner


def test_numbers_and_rankings_of_mllm_judge(read):
    score = {name: MLLM[name] for name in ("id", "image_path", "original_dataset", "instruction")}
    score |= {"score_id": 1, "answer": "x", "human": 4}
    assert [each.rating for each in read("mllm-judge", score, [score | {"mllm_judge": [[4]]}])[2]] == [4]
    assert [each.rating for each in read("mllm-judge", score, [score | {"mllm_judge": 3}])[2]] == [3]
    batch = {name: MLLM[name] for name in ("id", "image_path", "original_dataset", "instruction")}
    batch |= {"answers": [{"name": "m", "answer": text} for text in "xyz"], "human": "ABC"}
    ranked = read("mllm-judge", batch, [batch | {"mllm_judge": ["C", "A", "B"]}])[2]
    assert [each.ranking for each in ranked] == [(2, 0, 1)]


def test_a_record_without_its_judgement_is_named(read):
    with pytest.raises(ValueError, match="row 2: no value for mllm_judge"):
        read("mllm-judge", MLLM, [MLLM | {"mllm_judge": None}, MLLM])


def test_multimodal_rewardbench_results_hold_one_or_several_outputs(read):
    results = [{"Meta": MULTIMODAL, "outputs": ["[[A]]", "[[B]]"]}, {"Meta": MULTIMODAL, "output": "[[B]]"}]
    _, _, predictions = read("multimodal-rewardbench", MULTIMODAL, results)
    assert [(each.sample, each.winner) for each in predictions] == [(0, 0), (1, 1), (2, 1)]


def test_a_result_that_keeps_only_the_id_finds_its_row(read):
    result = {"ID": "a", "Image": "i", "Label": "B", "output": "[[B]]", "Meta": {"Category": "vqa"}}
    _, rows, predictions = read("multimodal-rewardbench", MULTIMODAL, [result, result | {"ID": "other"}])
    assert [(each.key, each.winner) for each in predictions] == [(rows[0].key, 1)]
    twice = [MULTIMODAL, MULTIMODAL | {"Output1": "z"}]
    with pytest.raises(ValueError, match=r"row 1: fits 2 rows of the benchmark: a#"):
        read("multimodal-rewardbench", twice, [result])


def test_mm_rlhf_rewards_become_scores(read):
    suite, rows, predictions = read("mm-rlhf-rewardbench", MM_RLHF, [MM_RLHF | {"rewards": [0.5, 0.25]}])
    assert [(each.order, each.sample, each.rating) for each in predictions] == [((0,), 0, 0.5), ((1,), 0, 0.25)]
    assert suite.score(rows, predictions, "official").right.tolist() == [1]


def test_scores_of_rewardbench2_belong_to_the_responses_in_their_order(read):
    columns = {"id": ["12", "9"], "subset": ["Math", "Math"], "scores": [[1.5, [0.5], 2, -1], [1, 2]], "model": "m"}
    same_id = [REWARDBENCH2, REWARDBENCH2 | {"subset": "Focus"}]
    _, rows, predictions = read("rewardbench2", same_id, [columns], suffix="json")
    assert [(each.key, each.order, each.rating) for each in predictions] == [
        (rows[0].key, (i,), score) for i, score in enumerate((1.5, 0.5, 2, -1))
    ]
    with pytest.raises(ValueError, match=r"item 1: expected 4 scores, found \[1\]"):
        read("rewardbench2", REWARDBENCH2, [columns | {"scores": [[1], [1, 2]]}], suffix="json")


def test_unknown_layouts_and_missing_fields_are_named(read, tmp_path):
    with pytest.raises(UserError, match=r"no result file of rewardbench2 is known .* fields: a\. Known are run_v2.py"):
        read("rewardbench2", REWARDBENCH2, [{"a": 1}])
    with pytest.raises(UserError, match="Known are none but the predictions"):
        read("pairwise", {"id": 1, "question": "q", "responses": ["a", "b"], "better": 0}, [{"a": 1}])
    with pytest.raises(ValueError, match=r"results.jsonl, row 1, meta: no value for filter_choice"):
        read("vl-rewardbench", VL | {"human_ranking": [0, 1]}, [VL | {"ranking": [0, 1], "meta": {"random_number": 1}}])
    (tmp_path / "sheet.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"cannot read .xlsx; .* VLMEvalKit writes .tsv with PRED_FORMAT=tsv"):
        read_results(SUITES["vl-rewardbench"], tmp_path / "sheet.xlsx", [], "j")
    with pytest.raises(UserError, match="has no records"):
        read("rewardbench2", REWARDBENCH2, [])


def _right_in_order(row, right):
    """The verdict that is right or wrong where the responses are shown in the order of lmms-eval and VLMEvalKit."""
    better = row["human_ranking"].index(0)
    shown_first = 1 if sum(map(len, row["response"])) % 2 else 0
    return f"**Overall Judgment:** Answer {1 if (better == shown_first) == right else 2} is better."


PAIRS = [
    VL | {"id": f"{source}-{n}", "query": f"{source} {n}?", "human_ranking": [0, 1]}
    for source in ("RLHF-V", "mmmu", "wildvision")
    for n in range(2)
]
"""Of each group two rows, of which the judges below get the first right, and in `general` both."""
RIGHT = (True, False, True, False, True, True)


def test_samples_of_lmms_eval_through_the_command_line(tmp_path, figures):
    results = [_lmms_eval(row, _right_in_order(row, right)) for row, right in zip(PAIRS, RIGHT, strict=True)]
    scored = figures("vl-rewardbench", _write(tmp_path / "rows.jsonl", PAIRS), _write(tmp_path / "s.jsonl", results))
    assert scored == {
        "overall": pytest.approx(4 / 6),
        "macro": pytest.approx(2 / 3),
        "general": 1,
        "hallucination": 0.5,
        "reasoning": 0.5,
    }


def test_predictions_of_vlmevalkit_through_the_command_line(tmp_path, figures):
    texts = [_right_in_order(row, right) for row, right in zip(PAIRS, RIGHT, strict=True)]
    file = _vlmevalkit(tmp_path / "m_VL-RewardBench.tsv", PAIRS, texts)
    scored = figures("vl-rewardbench", _write(tmp_path / "rows.jsonl", PAIRS), file)
    assert (scored["overall"], scored["general"]) == (pytest.approx(4 / 6), 1)


def test_chunks_of_mm_rlhf_through_the_command_line(tmp_path, figures):
    rows = [MM_RLHF | {"id": str(n), "image": f"{kind}/{n}.png"} for n, kind in enumerate(("long", "long", "mcq"))]
    rewards = ([0.5, 0.25], [0.25, 0.25], [0.5, 0.0])
    answered = [row | {"rewards": pair, "critic": []} for row, pair in zip(rows, rewards, strict=True)]
    (tmp_path / "chunks").mkdir()
    for chunk, part in enumerate((answered[:2], answered[2:])):
        _write(tmp_path / f"chunks/answers_chunk{chunk}_of_2.jsonl", part)
    scored = figures("mm-rlhf-rewardbench", _write(tmp_path / "rows.jsonl", rows), tmp_path / "chunks")
    assert scored["accuracy"] == pytest.approx(2 / 3)
    assert (scored["accuracy/long"], scored["accuracy/mcq"]) == (0.5, 1)


def test_outputs_of_multimodal_rewardbench_through_the_command_line(tmp_path, figures):
    rows = [MULTIMODAL | {"ID": str(n)} for n in range(4)]
    results = [
        {"ID": row["ID"], "Text": "…", "Image": "i", "Label": "B", "Meta": row, "output": f"So [[{letter}]]"}
        for row, letter in zip(rows, "BBBA", strict=True)
    ]
    scored = figures(
        "multimodal-rewardbench", _write(tmp_path / "rows.jsonl", rows), _write(tmp_path / "gpt4o.jsonl", results)
    )
    assert scored == {"overall": 0.75, "macro": 0.75, "vqa": 0.75}


def test_judgments_of_multimodal_rewardbench_2_through_the_command_line(tmp_path, figures):
    pairs = [
        {
            "id": str(n),
            "prompt_content": [["text", "Draw a cup."]],
            "response_a": {"model_name": "m", "response_content": [["image", f"images/{n}_a.png"]]},
            "response_b": {"model_name": "n", "response_content": [["image", f"images/{n}_b.png"]]},
            "chosen": "A",
        }
        for n in range(3)
    ]
    judged = {
        str(n): {name: [{"judgement": letter}] for name, letter in zip(("forward", "reverse"), letters, strict=True)}
        for n, letters in enumerate((("A", "B"), ("A", "A"), ("B", None)))
    }
    results = _write(tmp_path / "task1_model.json", [judged])
    scored = figures("multimodal-rewardbench-2", _write(tmp_path / "t2i.json", [{"pairs": pairs}]), results)
    assert scored == {"overall": 0.6, "macro": 0.6, "t2i": 0.6}


def test_answers_of_vlrmbench_through_the_command_line(tmp_path, figures):
    row = {"image": ["1.jpg"], "question": "q", "step_list": ["STEP1: A."], "reasoning_error": "STEP1: B."}
    answers = (("[7, 4]", "[4, 7]"), ("[7, 4]", "[9, 1]"), ("[5, 5]", None))
    results = [
        {"id": n, "task_gt": [0, 1], "model_answer_front": front, "model_answer_back": back}
        for n, (front, back) in enumerate(answers)
    ]
    rows = _write(tmp_path / "multi_solution.jsonl", [row | {"id": n} for n in range(3)])
    assert figures("vlrmbench", rows, _write(tmp_path / "m.jsonl", results)) == {"overall": pytest.approx(1 / 3)}


def test_results_of_mllm_judge_through_the_command_line(tmp_path, figures):
    rows = [MLLM | {"pair_id": n, "human": label} for n, label in enumerate("AABC")]
    answered = [
        row | {"mllm_judge": judgement} for row, judgement in zip(rows, ("[[A]]", [["B"]], None, "[[C]]"), strict=True)
    ]
    scored = figures("mllm-judge", _write(tmp_path / "pair.jsonl", rows), _write(tmp_path / "m.jsonl", answered))
    assert scored["pair_with_ties"] == pytest.approx(2 / 3)
    assert scored["pair_without_ties"] == 0.5


def test_scores_of_rewardbench2_through_the_command_line(tmp_path, figures):
    rows = [REWARDBENCH2 | {"id": str(n)} for n in range(2)]
    columns = {"id": ["0", "1"], "subset": ["Math"] * 2, "scores": [[2, 1, 0, 0], [1, 1, 0, 0]], "num_correct": [1, 1]}
    results = tmp_path / "scores.json"
    results.write_text(json.dumps(columns | {"model": "m", "model_type": "Seq. Classifier"}))
    scored = figures("rewardbench2", _write(tmp_path / "rows.jsonl", rows), results)
    assert scored == {"macro": 0.75, "Math": 0.75}


def test_lmms_eval_and_vlmevalkit_agree_over_the_public_rows(shared_data, tmp_path, figures):
    rows = [json.loads(line) for line in (shared_data / "vl_rewardbench.jsonl").read_text().splitlines()]
    texts = [_right_in_order(row, len(row["query"]) % 3 > 0) for row in rows]
    samples = _write(tmp_path / "samples.jsonl", map(_lmms_eval, rows, texts))
    of_lmms_eval = figures("vl-rewardbench", shared_data / "vl_rewardbench.jsonl", samples)
    table = _vlmevalkit(tmp_path / "predictions.tsv", rows, texts)
    assert figures("vl-rewardbench", shared_data / "vl_rewardbench.jsonl", table) == of_lmms_eval
    assert of_lmms_eval["overall"] == pytest.approx(sum(len(row["query"]) % 3 > 0 for row in rows) / len(rows))


def test_rewards_of_mm_rlhf_over_the_public_rows(shared_data, tmp_path, figures):
    path = shared_data / "mm_rlhf_rewardbench.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rewards = [[float(len(row["chosen"])), float(len(row["rejected"]))] for row in rows]
    results = [row | {"rewards": pair, "critic": []} for row, pair in zip(rows, rewards, strict=True)]
    scored = figures("mm-rlhf-rewardbench", path, _write(tmp_path / "answers_chunk0_of_1.jsonl", results))
    assert scored["accuracy"] == pytest.approx(sum(better > worse for better, worse in rewards) / len(rows))


def test_results_of_the_own_script_of_vl_rewardbench_over_the_public_rows(shared_data, tmp_path, figures):
    path = shared_data / "vl_rewardbench.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()][:300]
    swaps = [len(row["query"]) % 2 for row in rows]
    results = [
        {**row, "ranking": row["human_ranking"], "meta": {"filter_choice": FIRST_IS_BETTER, "random_number": swap}}
        for row, swap in zip(rows, swaps, strict=True)
    ]
    scored = figures("vl-rewardbench", _write(tmp_path / "rows.jsonl", rows), _write(tmp_path / "r.jsonl", results))
    right = [row["human_ranking"].index(0) == swap for row, swap in zip(rows, swaps, strict=True)]
    assert scored["overall"] == pytest.approx(sum(right) / len(rows))


def test_results_of_mllm_judge_over_the_public_rows(shared_data, tmp_path, figures):
    path = shared_data / "mllm_judge_pair.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    results = [row | {"mllm_judge": [["A"]]} for row in rows]
    scored = figures("mllm-judge", path, _write(tmp_path / "pair_model.jsonl", results))
    labels = [row["human_answer"] for row in rows if str(row["human_answer"]) != "-1"]
    assert scored["pair_with_ties/coco"] == pytest.approx(labels.count("A") / len(labels))

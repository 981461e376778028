"""The shipped judge, asked through real pools: every question once, resumed after a kill, nothing lost."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import pytest

from carevl.benchmarks.answering import EngineJudge, judge_questions
from carevl.benchmarks.predictions import from_table, to_table
from carevl.benchmarks.results import score_judge, summarize
from carevl.benchmarks.rows import Image
from carevl.benchmarks.run import EvalSet, JudgeRun, predict, size_parts
from carevl.benchmarks.suites import SUITES
from carevl.data.images import ImageLimits, decode_rgb
from carevl.errors import UserError
from carevl.models.engines.base import GenerationRequest
from carevl.settings.models import Judge, Pool
from carevl.settings.requests import JudgeRequests
from carevl.store.run import RunError
from carevl.store.table import Table

pytestmark = pytest.mark.ray
JUDGE = Judge(path="miniworld:judge", engine="transformers", max_tokens=80)
BOTH = ["official_scorer", "strict"]


@pytest.fixture(scope="module")
def world(small_world):
    return small_world


@pytest.fixture(scope="module")
def pairs(world):
    return SUITES["vl-rewardbench"].load(world / "dev/vl_rewardbench.parquet")[:12]


@pytest.fixture(scope="module")
def mixed(world):
    return SUITES["mllm-judge"].load(world / "dev/mllm_judge")[::40]


def _predict(rows, protocols, target, name="vl-rewardbench", judge=JUDGE, **options):
    told = []
    test = EvalSet(name, rows, protocols)
    counts = predict([JudgeRun(judge, "j", target)], [test], lambda *said: told.append(said), **options)
    return counts["j"], from_table(target.read()), told


@pytest.fixture(scope="module")
def first(ray, pairs, tmp_path_factory):
    target = Table(tmp_path_factory.mktemp("predictions"))
    return target, *_predict(pairs, [*BOTH, "verdict_prob"], target, part_questions=40)


class Counting(EngineJudge):
    """The real judge, with a count of what it was asked."""

    def __init__(self, judge):
        super().__init__(judge)
        self.asked = Counter()

    def answer(self, requests, decoding, logprob_texts):
        self.asked.update((request.prompt, request.response_prefix) for request in requests)
        return super().answer(requests, decoding, logprob_texts)


@pytest.fixture(scope="module")
def counting():
    return Counting(JUDGE)


def _questions(name, rows, protocols):
    return [question for protocol in protocols for question in SUITES[name].questions(rows, protocol)]


def _pictures(rows):
    return {row.shown: decode_rgb(row.images[0].read(), ImageLimits()) for row in rows}


def test_every_question_has_one_prediction(first, pairs):
    target, counts, predictions, told = first
    asked = _questions("vl-rewardbench", pairs, [*BOTH, "verdict_prob"])
    assert Counter((p.protocol, p.key, p.order, p.sample) for p in predictions) == Counter(
        (q.protocol, q.key, q.order, q.sample) for q in asked
    )
    assert counts == {"rows_in": len(asked), "rows_out": len(asked), "errors": 0, "rows_taken": 0}
    assert len(told) == len(target.parts()) > 1
    assert {path.name for path in target.directory.iterdir()} == {target.part(number).name for number in target.parts()}


@pytest.mark.parametrize(
    ("pool", "total", "size"),
    [
        ({}, 9000, 256),
        ({"num_gpus": 1}, 9000, 4096),
        ({"num_gpus": 1}, 900, 900),
        ({"num_gpus": 1, "concurrency": "1..16"}, 9000, 563),
        ({"num_gpus": 1, "concurrency": "auto"}, 9000, 256),
    ],
)
def test_parts_are_large_on_a_gpu_and_enough_for_every_actor(pool, total, size, tmp_path):
    run = JudgeRun(Judge(path="x", pool=Pool(**pool)), "base", Table(tmp_path))
    assert size_parts(run, total) == size


def test_parts_of_an_endpoint_are_a_few_rounds_of_requests(tmp_path):
    judge = Judge(path="http://h/v1#m")
    sizes = [
        size_parts(JudgeRun(judge.model_copy(update=changes), "j", Table(tmp_path / str(n))), 9000)
        for n, changes in enumerate(
            [{}, {"endpoint": JudgeRequests(concurrency=16)}, {"pool": Pool(batch_size=2)}, {"pool": Pool(num_cpus=2)}]
        )
    ]
    assert sizes == [256, 64, 32, 256]
    assert size_parts(JudgeRun(judge, "j", Table(tmp_path / "1")), 9000) == 64


def test_an_evaluation_goes_on_in_parts_of_the_size_that_it_began_with(tmp_path):
    alone, many = (Judge(path="x", pool=Pool(num_gpus=1, concurrency=concurrency)) for concurrency in (1, 9))
    begun = JudgeRun(alone, "base", Table(tmp_path / "new"))
    assert [size_parts(begun, 4000), size_parts(replace(begun, judge=many), 4000)] == [4000, 4000]
    earlier = Table(tmp_path / "earlier")
    earlier.write(0, to_table([]))
    assert size_parts(JudgeRun(alone, "base", earlier), 4000) == 256


def test_questions_about_an_image_share_a_part(first):
    target, *_ = first
    parts = [{row["key"] for row in target.read(number).to_pylist()} for number in target.parts()]
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_equal_judgments_are_made_once_and_stored_for_every_protocol(counting, pairs):
    asked = _questions("vl-rewardbench", pairs, BOTH)
    counting.asked.clear()
    suite = SUITES["vl-rewardbench"]
    predictions = judge_questions(counting, "j", suite, asked, _pictures(pairs), seed=0, max_images=8)
    assert set(counting.asked.values()) == {1}
    assert len(counting.asked) == 2 * len(pairs) < len(asked)
    texts = {(p.key, p.order): p.text for p in predictions if p.protocol == "strict"}
    assert all(p.text == texts[p.key, p.order] for p in predictions if p.protocol == "official_scorer")


def test_the_probability_agrees_with_the_verdict_and_with_a_second_look(first, counting, pairs):
    _, _, predictions, _ = first
    greedy = [p for p in predictions if p.protocol == "strict" and p.status == "ok"]
    assert len(greedy) > len(pairs)
    assert all((p.probability > 0.5) == (p.winner == 0) for p in greedy)
    prompts = {(q.key, q.order): q for q in _questions("vl-rewardbench", pairs, ["strict"])}
    pictures = _pictures(pairs)
    for p in greedy[:6]:
        question = prompts[p.key, p.order]
        begun = p.text[: p.text.rindex("Answer") + len("Answer ")]
        request = GenerationRequest((pictures[question.images[0].name],), question.prompt, begun)
        [looked] = counting.engine.generate([request], max_tokens=1, logprob_texts=["1", "2"])
        one, two = looked.logprobs[0]
        share = 1 / (1 + math.exp(two - one))
        assert p.probability == pytest.approx(share if p.order == (0, 1) else 1 - share, abs=1e-3)


def test_a_forced_verdict_has_no_evidence_and_a_probability(first):
    _, _, predictions, _ = first
    given = [p for p in predictions if p.protocol == "verdict_prob"]
    assert {p.text for p in given} <= {f"Overall Judgment: Answer {n} is better." for n in (1, 2)}
    assert all((p.probability > 0.5) == (p.winner == 0) for p in given)
    assert len({p.probability for p in given}) > len(given) / 2


def test_ratings_and_rankings_are_judged_too(counting, mixed):
    suite = SUITES["mllm-judge"]
    asked = _questions("mllm-judge", mixed, [*BOTH, "verdict_prob", "official"])
    predictions = judge_questions(counting, "j", suite, asked, _pictures(mixed), seed=0, max_images=8)
    forced = [p for p in predictions if p.protocol == "verdict_prob"]
    rankings = [p for p in forced if len(p.order) > 2]
    assert all(p.status == "ok" for p in forced if p not in rankings)
    assert any(p.rating for p in forced)
    assert rankings
    assert all(re.fullmatch(r"Overall Judgment: Ranking \d( > \d)+\.", p.text) for p in rankings)
    assert all(p.probability is None for p in predictions if p.protocol == "official")
    found = score_judge(suite, mixed, predictions)
    assert list(found) == ["official", "official_scorer", "strict", "verdict_prob"]
    shape = summarize({"mllm-judge": (suite, mixed, predictions)})
    assert list(shape) == ["mllm_judge", "parse_rate", "order_consistency"]
    assert list(shape["mllm_judge"]) == ["score", "pair_with_ties", "pair_without_ties", "batch"]
    json.dumps(shape)


def test_the_summary_has_the_names_that_results_rely_on(first, pairs):
    found = summarize({"vl-rewardbench": (SUITES["vl-rewardbench"], pairs, first[2])})
    names = ["overall", "macro", "general", "hallucination", "reasoning"]
    assert list(found["vl_rewardbench"]) == ["official_scorer", "strict"]
    assert all(sorted(figures) == sorted(names) for figures in found["vl_rewardbench"].values())
    assert all(set(found[name]) == {"value", "low", "high"} for name in ("parse_rate", "order_consistency"))


def test_a_broken_image_is_an_error_of_its_rows(ray, pairs, tmp_path):
    rows = [
        replace(pairs[0], images=(Image("broken", data=b"<svg/>"),)),
        replace(pairs[1], images=(Image("gone"),)),
        *pairs[2:5],
    ]
    counts, predictions, _ = _predict(rows, ["strict"], Table(tmp_path), max_error_fraction=0.5)
    assert counts == {"rows_in": 10, "rows_out": 10, "errors": 4, "rows_taken": 0}
    failed = [p for p in predictions if p.error]
    assert {p.key for p in failed} == {pairs[0].key, pairs[1].key}
    assert {p.status for p in failed} == {"none"}
    assert score_judge(SUITES["vl-rewardbench"], rows, predictions)["strict"]["errors"] == 4
    with pytest.raises(RunError, match=r"4 of 10 questions failed.* the first: .*not an image"):
        _predict(rows, ["strict"], Table(tmp_path), max_error_fraction=0.1)


def test_what_the_model_refuses_fails_alone(counting, pairs):
    """A Qwen2-VL processor raises ValueError on an image 200 times as wide as high, whatever else is in the batch."""
    suite, pictures = SUITES["vl-rewardbench"], _pictures(pairs[:3])
    pictures[pairs[1].shown] = pictures[pairs[1].shown].resize((4200, 20))
    asked = _questions("vl-rewardbench", pairs[:3], ["strict"])
    predictions = judge_questions(counting, "j", suite, asked, pictures, seed=0, max_images=8)
    assert {p.key for p in predictions if p.error} == {pairs[1].key}
    assert all("aspect ratio" in p.error["message"] for p in predictions if p.error)


def test_a_row_without_image_is_refused_not_guessed(pairs, tmp_path):
    with pytest.raises(UserError, match="has no image, and this benchmark asks about images"):
        _predict([replace(pairs[0], images=())], ["strict"], Table(tmp_path))


def test_a_reward_model_scores_the_responses(ray, tmp_path):
    file = tmp_path / "rows.jsonl"
    row = {"id": 1, "subset": "Math", "prompt": "How many?", "chosen": ["Two."], "rejected": ["Four.", "Ten."]}
    file.write_text(json.dumps(row))
    rows = SUITES["rewardbench2"].load(file)
    expert = JUDGE.model_copy(update={"path": "miniworld:expert-llama"})
    _, predictions, _ = _predict(rows, ["official"], Table(tmp_path / "t"), "rewardbench2", expert)
    assert sorted(p.order for p in predictions) == [(0,), (1,), (2,)]
    assert len({p.rating for p in predictions}) == 3


@pytest.mark.fault
def test_a_killed_evaluation_goes_on_where_it_stopped(first, pairs, world, tmp_path):
    target = Table(tmp_path / "killed")
    script = f"""
from pathlib import Path
from carevl.benchmarks.suites import SUITES
from carevl.cluster.connect import ray_cluster
from carevl.settings.models import Judge
from carevl.settings.tree import Cluster
from carevl.store.table import Table
from carevl.benchmarks.run import JudgeRun, EvalSet, predict
suite = SUITES["vl-rewardbench"]
rows = suite.load(Path({str(world / "dev/vl_rewardbench.parquet")!r}))[:12]
judge = Judge.model_validate_json({JUDGE.model_dump_json()!r})
with ray_cluster(Cluster(num_cpus=2)):
    predict([JudgeRun(judge, "j", Table(Path({str(target.directory)!r})))],
            [EvalSet("vl-rewardbench", rows, {[*BOTH, "verdict_prob"]!r})], lambda *_: None, part_questions=10)
"""
    killed = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while len(target.parts()) < 2:
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = {number: target.part(number).stat().st_mtime_ns for number in target.parts()}
    n_parts = len(list(EvalSet("vl-rewardbench", pairs, [*BOTH, "verdict_prob"]).blocks(0, 10)))
    assert len(kept) < n_parts
    _, predictions, told = _predict(pairs, [*BOTH, "verdict_prob"], target, part_questions=10)
    assert all(target.part(number).stat().st_mtime_ns == before for number, before in kept.items())
    assert len(told) == n_parts - len(kept)
    whole = {(p.protocol, p.key, p.order, p.sample): (p.text, p.winner, p.status) for p in first[2]}
    assert {(p.protocol, p.key, p.order, p.sample): (p.text, p.winner, p.status) for p in predictions} == whole
    assert len(predictions) == len(whole)

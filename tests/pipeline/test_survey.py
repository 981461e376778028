"""`carevl check SETTINGS`: what a run will meet is found before it begins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from carevl.pipeline.survey import survey
from carevl.settings.loader import load_settings
from carevl.store.run import Run
from tests.helpers.sized_judge import write_sized_judge

CAREVL = Path(sys.executable).with_name("carevl")


def _survey(tmp_path, *overrides, rows=24):
    settings = load_settings("mini", ["items=64", *overrides])
    return survey(settings, Run(tmp_path / "run"), rows, lambda _: None)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return _survey(tmp_path_factory.mktemp("survey"))


def test_tokens_of_images_prompts_and_conversations_are_counted(found):
    counted = {(counts.model, counts.of): counts for counts in found.tokens}
    assert set(counted) == {
        *((model, of) for model in ("captioner", "judge") for of in ("images", "prompts")),
        *((phase, "prompts") for phase in ("sft", "dpo")),
        *((f"score/{name}", "conversations") for name in ("llama", "qwen2", "mistral")),
    }
    assert counted["judge", "images"].typical == 9
    prompts = counted["judge", "prompts"]
    assert 9 < prompts.least <= prompts.typical <= prompts.most < prompts.limit
    assert prompts.over == 0
    assert all(counts.n >= found.rows == 24 for counts in counted.values())


def test_every_expert_scores_the_probe(found):
    assert set(found.probes) == {"llama", "qwen2", "mistral"}
    assert all(right > wrong for right, wrong in found.probes.values())


def test_tokens_of_the_verdict_are_told_apart(found):
    assert len({found.verdict[text] for text in "12345"}) == 5


def test_prompts_that_are_too_long_are_counted(tmp_path):
    found = _survey(tmp_path, "judge.max_model_len=110", "judge.max_tokens=20", "sft.batch_tokens=120")
    over = {counts.model: counts.over for counts in found.tokens if counts.of == "prompts"}
    assert 0 < over["judge"] <= 24
    assert 0 < over["sft"] <= 24
    assert over["dpo"] == over["captioner"] == 0


def test_rows_that_cannot_be_used_are_counted_by_kind(tmp_path):
    rows = [{"image": f"{n}.png", "question": "What is it?", "responses": ["A cat.", "A dog."]} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = _survey(tmp_path, f"data.sources=[{{path: {tmp_path / 'rows.jsonl'}}}]")
    assert (found.rows, sum(found.errors.values())) == (3, 3)
    assert "0 of the first 3 rows can be used" in next(found.lines())
    [example] = found.examples.values()
    assert example.startswith("source-0 rows.jsonl#0: '0.png'")


def test_a_model_that_is_not_here_is_said_and_not_fetched(tmp_path):
    found = _survey(tmp_path, "experts.0.path=nobody/nothing", "captioner.path=nobody/nothing")
    assert found.probes["llama"] == "not asked: it is not on this machine"
    assert set(found.unread) == {"captioner", "score/llama"}


def _check(*arguments):
    done = subprocess.run([CAREVL, "check", *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.ray
def test_what_cannot_fit_ends_with_what_to_change(tmp_path):
    judge = write_sized_judge(tmp_path / "judge", "0.1B", "bfloat16")
    (tmp_path / "settings.yaml").write_text(
        json.dumps(
            {
                **json.loads(load_settings("mini").model_dump_json()),
                "items": 16,
                "cluster": {"gpu_memory_gb": 4},
                "judge": {"path": str(judge), "engine": "transformers"},
            }
        )
    )
    settings = str(tmp_path / "settings.yaml")
    gpus = [word for phase in ("sft", "dpo") for word in ("--set", f"{phase}.workers.num_gpus=1")]
    large = ["--set", "sft.batch_tokens=4096", "--set", "dpo.batch_tokens=1024"]
    status, out, err = _check(settings, *gpus, *large, "--rows", "4", "--json")
    facts = json.loads(out)
    assert status == 2
    [problem] = facts["problems"]
    assert problem in err
    assert "sft: judge as float32 takes" in problem
    assert "lower sft.batch_tokens, set sft.gradient_checkpointing" in problem
    assert {fit["table"] for fit in facts["fits"]} == {"sft", "dpo"}
    assert all(sum(fit["parts"].values()) < fit["bytes"] for fit in facts["fits"])


def test_options_of_the_one_are_refused_for_the_other():
    assert _check("mini", "--download")[0] == 2
    status, _, err = _check("miniworld:judge", "--set", "items=3")
    assert (status, "neither a preset nor a YAML file" in err) == (2, True)
    assert _check("miniworld:judge", "--rows", "4")[0] == 2
    assert "the preset mini?" in _check("minii")[2]

"""What a plan says of models of the hub, and what a run does about them before its first stage."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from carevl.miniworld.weights import WEIGHTS
from carevl.models.download import fetch_model
from carevl.pipeline.plan import plan_lines
from carevl.settings.loader import load_settings
from carevl.store.run import Run, RunError

CAREVL = Path(sys.executable).with_name("carevl")
SHIPPED = ("captioner", "expert-llama", "expert-qwen2", "expert-mistral", "judge")
CARD = ["cluster.num_gpus=1", "cluster.num_cpus=16"]


@pytest.fixture
def serve(hub, tmp_path):
    """Serves shipped models under the names and commits of a preset, as bfloat16; returns its settings."""
    (tmp_path / "pairs.jsonl").touch()

    def make(preset, *overrides):
        settings = load_settings(preset, [f"data.sources.0.path={tmp_path / 'pairs.jsonl'}", *CARD, *overrides])
        models = (settings.captioner, *settings.experts, settings.judge)
        for model, name in zip(models, SHIPPED, strict=True):
            hub.add(model.path, WEIGHTS / name, model.revision, dtype="bfloat16")
        return settings

    return make


def _lines(settings, tmp_path):
    return list(plan_lines(settings, Run(tmp_path / "run"), False, lambda _: None))


def _refusal(settings, tmp_path):
    with pytest.raises(RunError) as refused:
        _lines(settings, tmp_path)
    return str(refused.value).splitlines()


def test_the_plan_of_a_preset_says_what_will_be_downloaded_and_put_on_the_card(hub, serve, tmp_path):
    settings = serve("single-gpu")
    judge = settings.judge
    fetch_model((judge.path, judge.revision, False), lambda _: None)
    hub.forget()
    command = [CAREVL, "plan", "single-gpu", "--run-dir", tmp_path / "run"]
    command += [word for each in [f"data.sources.0.path={tmp_path / 'pairs.jsonl'}", *CARD] for word in ("--set", each)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    captioner, experts = settings.captioner, settings.experts
    for line in (
        rf"captioner +{captioner.path}@{captioner.revision}: 3\.7 MB to fetch, 0\.0 MB in the cache",
        rf"experts\.0 +{experts[0].path}@{experts[0].revision}: 2\.8 MB to fetch, 0\.0 MB in the cache",
        rf"experts\.2 +{experts[2].path}@main: 2\.8 MB to fetch, 0\.0 MB in the cache",
        rf"judge +{judge.path}@{judge.revision}: nothing to fetch, 3\.7 MB in the cache",
        rf"downloads +11\.9 MB to fetch into {tmp_path}/hf/hub, which has .* free",
        r"caption +3\.6 MB of 80\.0 GB for the weights of captioner as auto",  # its configuration is not here yet
        r"score/rm-mistral +2\.7 MB of 26\.4 GB for the weights of experts\.2 as auto, 0\.33 of a card",
        r"sft +[\d.]+ GB of 80\.0 GB for judge as bfloat16: weights 3\.\d MB, adapters .* MB, .*, CUDA 1\.6 GB",
        r"dpo +trains \d+ adapters of [\d,]+ numbers \(language\); frozen: 25 of 25 tensors of the vision tower, .*",
        r"evaluate/phase2 +[\d.]+ GB of 80\.0 GB for judge as auto: weights 3\.\d MB, .*, cache .*, CUDA 1\.6 GB",
    ):
        assert re.search(rf"^{line}$", done.stdout, re.MULTILINE), line
    assert hub.bytes_served == 0
    assert hub.unknown == []


def test_a_plan_refuses_what_cannot_fit_by_its_weights_alone(serve, tmp_path):
    settings = serve(
        "single-gpu", "cluster.gpu_memory_gb=0.006", "sft.dtype=float32", "dpo.zero.stage=3", "dpo.workers.count=2"
    )
    lines = _refusal(settings, tmp_path)
    assert lines[0] == (
        "score/skywork-llama: the weights of experts.0 take 2.7 MB of a card as auto, and experts.0.pool leaves it "
        "2.0 MB; raise experts.0.pool.num_gpus, or choose a smaller model or larger cards"
    )
    assert [line.split(":")[0] for line in lines[:-1]] == [
        "score/skywork-llama",
        "score/skywork-qwen3",
        "score/rm-mistral",
        "sft",
    ]
    assert "take 7.2 MB of a card as float32, and sft.workers leaves it 6.0 MB; spread it over more workers" in lines[3]
    assert lines[4].startswith("dpo: 2 workers of 8 CPU, 1 GPU have to start together")


def test_a_plan_names_every_model_that_the_hub_does_not_give(hub, serve, tmp_path):
    settings = serve("single-gpu", f"captioner.revision={'a' * 40}")
    hub.repositories[settings.captioner.path].commits.clear()
    hub.gate(settings.experts[0].path)
    hub.add(settings.experts[2].path, WEIGHTS / "judge", without=("*.safetensors",), more={"pytorch_model.bin": b"x"})
    lines = _refusal(settings, tmp_path)
    assert re.match(r"captioner\.path: .*@a{40}: the hub has no such revision; take a commit from", lines[0])
    assert re.match(r"experts\.0\.path: .* is gated; accept its terms at", lines[1])
    assert re.match(r"experts\.2\.path: .* has no safetensors weights, only pytorch_model\.bin, and no", lines[2])
    assert len(lines) == 3


def test_a_plan_needs_no_network(hub, serve, tmp_path, monkeypatch):
    settings = serve("single-gpu")
    fetch_model((settings.judge.path, settings.judge.revision, False), lambda _: None)
    hub.forget()
    for name, value in (("ENDPOINT", "http://127.0.0.1:9"), ("HF_HUB_OFFLINE", True)):
        monkeypatch.setattr(constants, name, value)
        lines = _lines(settings, tmp_path)
        assert sum("not in the cache" in line for line in lines) == 4
        assert (
            "warning: the hub does not answer here, so that nobody knows the bytes of captioner, experts.0, experts.1, "
            "experts.2" in lines
        )
        assert any(re.match(r"caption +unknown bytes of 80\.0 GB for", line) for line in lines)
        assert any(
            re.match(r"sft +[\d.]+ GB of 80\.0 GB for judge as bfloat16: weights 3\.\d MB", line) for line in lines
        )
    assert hub.requests == []


def test_a_plan_without_hub_models_says_nothing_of_them(tmp_path):
    lines = _lines(load_settings("mini"), tmp_path)
    assert not [line for line in lines if "fetch" in line or "for the weights" in line]


@pytest.mark.train
def test_models_are_fetched_before_the_first_stage_and_the_judge_is_trained_at_its_commit(hub, tmp_path):
    """From its command line, with a Ray of its own: the judge's branch has moved on since its commit."""
    commit = hub.add("org/judge", WEIGHTS / "judge", dtype="bfloat16", shards=2)
    hub.add("org/judge", WEIGHTS / "captioner", without=("*.safetensors",))
    expert = hub.add("org/expert", WEIGHTS / "expert-llama")
    overrides = [
        "miniworld.items=60",
        "miniworld.calibration_images=40",
        "data.parts=2",
        "captioner.engine=transformers",
        "captioner.pool.num_cpus=0.5",
        "experts.0.path=org/expert",
        "experts.0.revision=" + expert,
        "judge.path=org/judge",
        "judge.revision=" + commit,
        "judge.engine=transformers",
        "judge.pool.concurrency=1",
        "router.policy=mean_margin",
        "router.threshold=0.7",
        "demonstrate.samples=2",
        "sft.workers.count=1",
        "sft.batch_size=8",
        "sft.epochs=1",
        "sft.dtype=bfloat16",
        "cluster.num_cpus=2",
    ]
    words = [word for override in overrides for word in ("--set", override)]
    command = [CAREVL, "run", "mini", "--until", "sft", "--run-dir", tmp_path / "run", *words]
    hub.add("org/none", WEIGHTS / "judge", without=("*.safetensors",))
    refused = subprocess.run([*command, "--set", "judge.path=org/none"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert not list((tmp_path / "run").glob("ingest/*"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in (f"org/judge@{commit}", f"org/expert@{expert}"):
        assert done.stderr.index(f"{name}: in {tmp_path}/hf/hub") < done.stderr.index("ingest  ")
    [record] = (tmp_path / "run").glob("sft/*/training.json")
    assert f'"judge": "org/judge@{commit}"' in record.read_text()
    [config] = (tmp_path / "run").glob("sft/*/judge/config.json")
    assert '"dtype": "bfloat16"' in config.read_text()
    served = hub.bytes_served
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert hub.bytes_served == served

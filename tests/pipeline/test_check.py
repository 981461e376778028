"""The walk through everything that a run can refuse: each is refused before anything runs, in a line that helps."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from carevl.cli.app import run_here
from carevl.errors import SettingsError
from carevl.models.locate import locate
from carevl.pipeline.check import check_settings
from carevl.settings.loader import load_settings, presets

CAREVL = Path(sys.executable).with_name("carevl")
NO_LABELS = "data.sources=[{name: pairs, path: 'miniworld:train/rlaif_v.parquet'}]"
ENDPOINT = "experts.0={name: far, kind: endpoint, path: a-model, endpoint: {url: %s, api_key_env: CAREVL_TEST_KEY}}"

REFUSALS = {
    "two sources of one name": (
        ["data.sources.1.name=pairs"],
        "data.sources.1.name: pairs is also data.sources.0.name; give each a name of its own",
    ),
    "a source without a name, and one with the name that it gets": (
        ["data.sources.0.name=source-1", "data.sources.1.name=null"],
        "data.sources.1.name: source-1 is also data.sources.0.name; give each a name of its own "
        "(a source without a name is called source-N)",
    ),
    "a source that is not there": (
        ["data.sources.0.path=/no/such/pairs.parquet"],
        "data.sources.0.path: /no/such/pairs.parquet: no such file or directory",
    ),
    "a source of a scheme that cannot be imported": (
        ["data.sources.0.path='no_such_package:WORLD:train'"],
        "data.sources.0.path: scheme no_such_package:WORLD: no_such_package cannot be imported",
    ),
    "captions that are not there": (
        ["data.sources.0.captions=/no/such/captions.json"],
        "data.sources.0.captions: /no/such/captions.json: no such file or directory",
    ),
    "an unknown format": (
        ["data.sources.0.format=rlaif-w"],
        "data.sources.0.format: there is no preference format 'rlaif-w'; did you mean rlaif-v?",
    ),
    "a format of the user's that cannot be imported": (
        ["data.sources.0.format=no_such_package:FORMAT"],
        "data.sources.0.format: preference format no_such_package:FORMAT: no_such_package cannot be imported",
    ),
    "two experts of one name": (
        ["experts.2.name=llama"],
        "experts.2.name: llama is also experts.0.name; give each a name of its own",
    ),
    "two experts whose names differ in letter case": (
        ["experts.2.name=Llama"],
        "experts.2.name: Llama is llama of experts.0.name in other letter case",
    ),
    "two splits whose names differ in letter case": (
        ["data.sources.1.split=Train"],
        "data.sources.1.split: Train is train of data.sources.0.split in other letter case",
    ),
    "a template that cannot be filled in": (
        ["experts.0.template='{caption} {answer}'"],
        "experts.0.template: '{caption} {answer}' cannot be filled in ('answer'); write {caption} and {question}",
    ),
    "a line of testimony that cannot be filled in": (
        ["experts.0.observer='Seen: {said}'"],
        "experts.0.observer: 'Seen: {said}' cannot be filled in ('said'); write {testimony}",
    ),
    "an expert's class that is not there": (
        ["experts.0.kind=python", "experts.0.path=no_such_package:Expert"],
        "experts.0.path: expert no_such_package:Expert: there is no such class",
    ),
    "a rule that reads answers which the judge is not asked for": (
        ["sample.answers=false", "select.rules={'carevl.compare.words:AnswerWords': 1}"],
        "select.rules: carevl.compare.words:AnswerWords reads answers that are not asked for; set sample.answers: true",
    ),
    "a rule that is not there": (
        ["select.rules={consitency: 1}"],
        "select.rules: there is no selection rule 'consitency'; did you mean consistency?",
    ),
    "a misspelt engine": (
        ["judge.engine=transfomers"],
        "judge.engine: there is no engine 'transfomers'; did you mean transformers?",
    ),
    "an expert's engine that cannot be imported": (
        ["experts.1.engine=no_such_package:ENGINE"],
        "experts.1.engine: engine no_such_package:ENGINE: no_such_package cannot be imported",
    ),
    "a misspelt kind of expert": (
        ["experts.0.kind=reward-model"],
        "experts.0.kind: there is no expert kind 'reward-model'; did you mean reward_model?",
    ),
    "a shipped model that is not there": (
        ["experts.0.path=miniworld:expert-lama"],
        "experts.0.path: miniworld:expert-lama: there is no such shipped model; there are captioner,",
    ),
    "an endpoint whose key is not set": (
        [ENDPOINT % "https://example.invalid/v1"],
        "experts.0.endpoint: the environment has no CAREVL_TEST_KEY",
    ),
    "a captioner's directory that is not there": (
        ["captioner.path=/no/such/captioner"],
        "captioner.path: /no/such/captioner: there is no such directory, and it is no hub id",
    ),
    "a judge that is an endpoint": (
        ["judge.path='http://127.0.0.1:8000/v1#judge'"],
        "judge.path: http://127.0.0.1:8000/v1#judge is an endpoint, and a run loads weights",
    ),
    "an argument that vLLM does not have": (
        ["experts.0.engine=vllm", "experts.0.engine_args={gpu_memory_utilisation: 0.5}"],
        "experts.0.engine_args: miniworld:expert-llama: engine_args has gpu_memory_utilisation, which vLLM does not "
        "know; did you mean gpu_memory_utilization?",
    ),
    "an output that an expert's head does not have": (
        ["experts.0.output=3"],
        f"experts.0.path: {locate('miniworld:expert-llama')}: output is 3, and its head has one output",
    ),
    "no room for a prompt": (
        ["captioner.engine=vllm", "captioner.max_tokens=256"],
        "captioner.max_tokens: 256 tokens of answer leave no room for a prompt in max_model_len 256",
    ),
    "a misspelt benchmark": (
        ["benchmarks.0.name=vl-rewardbnech"],
        "benchmarks.0.name: there is no benchmark 'vl-rewardbnech'; did you mean vl-rewardbench?",
    ),
    "a misspelt benchmark that nothing is screened for": (
        ["benchmarks.0.name=vl-rewardbnech", "data.decontaminate=false"],
        "benchmarks.0.name: there is no benchmark 'vl-rewardbnech'; did you mean vl-rewardbench?",
    ),
    "two benchmarks of one name": (
        ["benchmarks.1.name=vl-rewardbench"],
        "benchmarks.1.name: vl-rewardbench is also benchmarks.0.name; give each a name of its own",
    ),
    "two benchmarks of one name, one of them by its import path": (
        ["benchmarks.1.name=carevl.benchmarks.suites.vl_rewardbench:SUITE"],
        "benchmarks.1.name: vl-rewardbench is also benchmarks.0.name; give each a name of its own",
    ),
    "ratings one by one of a benchmark of other tasks than pairs": (
        ["benchmarks.1.protocols=[strict, pointwise]"],
        "benchmarks.1.protocols: mllm-judge has rows of other tasks than pairs, so pointwise does not score it; leave "
        "it out",
    ),
    "a benchmark that is not there": (
        ["benchmarks.0.path=/no/such/rows.parquet"],
        "benchmarks.0.path: /no/such/rows.parquet: no such file or directory",
    ),
    "test data that are not there, to screen for": (
        ["benchmarks.0.final_path=/no/such/rows.parquet"],
        "benchmarks.0.final_path: /no/such/rows.parquet: no such file or directory",
    ),
    "a certificate without labels": (
        [NO_LABELS, "router.policy=target_precision"],
        "router.policy: target_precision is certified on labels, and no source has any; declare one with labels: true",
    ),
    "a fitted combination without labels": (
        [NO_LABELS, "router.combination=learned"],
        "router.combination: learned is fitted on labels, and no source has any; declare one with labels: true, or",
    ),
    "a fitted combination that the fallback needs": (
        [NO_LABELS, "router.policy=target_precision", "router.fallback=mean_margin", "router.combination=weighted"],
        "router.combination: weighted is fitted on labels",
    ),
    "labels only": (
        ["data.sources=[{path: 'miniworld:calibration/rlaif_v.parquet', labels: true}]"],
        "data.sources: every source has labels, so there is nothing to learn from; add one without",
    ),
    "pairs of development without labels": (
        [NO_LABELS, "dpo.dev_pairs=20"],
        "dpo.dev_pairs: no source has labels; declare one with labels: true, or set dpo.dev_pairs to 0",
    ),
    "an optimiser that nothing spreads": (
        ["sft.zero.offload_optimizer=true"],
        "sft.zero.offload_optimizer: needs sft.zero.stage 1 or more",
    ),
    "a tracker that is not installed": (["sft.tracker=wandb"], "sft.tracker: tracker: wandb is not installed"),
}


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv("CAREVL_TEST_KEY", raising=False)


def _words(overrides):
    return [word for override in overrides for word in ("--set", override)]


def _carevl(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["carevl", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_here()
    return ended.value.code


@pytest.mark.parametrize(("overrides", "sentence"), REFUSALS.values(), ids=REFUSALS)
def test_what_no_run_can_use_is_refused_in_one_line(overrides, sentence):
    with pytest.raises(SettingsError) as refusal:
        check_settings(load_settings("mini", overrides))
    [line] = str(refusal.value).splitlines()
    assert line.startswith(sentence)


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(("overrides", "sentence"), REFUSALS.values(), ids=REFUSALS)
def test_plan_and_run_refuse_it_before_anything_is_written(command, overrides, sentence, tmp_path, monkeypatch, capsys):
    assert _carevl(monkeypatch, command, "mini", "--run-dir", tmp_path / "run", *_words(overrides)) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"carevl: {sentence}")
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
def test_the_command_line_ends_with_status_2_and_every_problem(tmp_path):
    overrides = ["benchmarks.0.name=vl-rewardbnech", "experts.2.name=llama", "dpo.zero.offload_optimizer=true"]
    for command in ("plan", "run"):
        done = subprocess.run(
            [CAREVL, command, "mini", "--run-dir", "run", *_words(overrides)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 2
        assert [line.split(":")[0] for line in done.stderr.removeprefix("carevl: ").splitlines()] == [
            "experts.2.name",
            "benchmarks.0.name",
            "dpo.zero.offload_optimizer",
        ]
        assert done.stdout == ""
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("config.json", "has no config.json: it is not a model that can be loaded"),
        ("model.safetensors", "has no safetensors weights: it is not a model that can be loaded"),
        ("chat_template.jinja", "has no chat template; a judge needs its chat_template.jinja"),
        ("processor_config.json", "has no image processor; a judge needs its preprocessor_config.json"),
    ],
)
def test_a_judge_that_lacks_a_file_is_refused(missing, sentence, tmp_path):
    shutil.copytree(locate("miniworld:judge"), tmp_path / "judge", copy_function=lambda a, b: Path(b).symlink_to(a))
    check_settings(load_settings("mini", [f"judge.path={tmp_path / 'judge'}"]))
    (tmp_path / "judge" / missing).unlink()
    with pytest.raises(SettingsError) as refusal:
        check_settings(load_settings("mini", [f"judge.path={tmp_path / 'judge'}"]))
    assert str(refusal.value) == f"judge.path: {tmp_path / 'judge'} {sentence}"


def test_a_judge_that_reads_no_images_is_refused_before_anything_is_paid(tmp_path):
    judge = tmp_path / "judge"
    shutil.copytree(locate("miniworld:judge"), judge)
    shutil.copy(Path(locate("miniworld:expert-llama")) / "config.json", judge)
    settings = load_settings("mini", [f"judge.path={judge}"])
    check_settings(settings, "route")
    with pytest.raises(SettingsError) as refusal:
        check_settings(settings)
    assert str(refusal.value) == (
        f"judge.path: {judge} is a llama model, which does not read images; a judge is a vision-language model"
    )


def test_test_data_are_asked_for_when_judges_are_to_be_evaluated_on_them():
    settings = load_settings("mini", ["benchmarks.1.final_path=null"])
    check_settings(settings)
    with pytest.raises(
        SettingsError, match=r"^benchmarks\.1\.final_path: mllm-judge has none, so there is no test data"
    ):
        check_settings(settings, final=True)
    with pytest.raises(SettingsError, match=r"^benchmarks: there is none, so there is no test data"):
        check_settings(load_settings("mini", ["benchmarks=[]"]), final=True)


@pytest.mark.parametrize(
    ("overrides", "last", "reached"),
    [
        (["dpo.dev_pairs=20", NO_LABELS], "demonstrate", "sft"),
        (["data.sources=[{path: 'miniworld:calibration/rlaif_v.parquet', labels: true}]"], "route", "sft"),
        (["router.policy=target_precision", NO_LABELS], "score/llama", "route"),
    ],
)
def test_stages_that_will_not_run_ask_for_nothing(overrides, last, reached):
    settings = load_settings("mini", overrides)
    check_settings(settings, last)
    with pytest.raises(SettingsError):
        check_settings(settings, reached)


def test_a_key_is_asked_for_only_where_the_experts_run(monkeypatch):
    over_http = load_settings("mini", [ENDPOINT % "http://example.invalid/v1"])
    monkeypatch.setenv("CAREVL_TEST_KEY", "secret")
    with pytest.raises(SettingsError, match="not encrypted: a key is only sent over https"):
        check_settings(over_http)
    monkeypatch.delenv("CAREVL_TEST_KEY")
    check_settings(load_settings("mini", [ENDPOINT % "https://example.invalid/v1", "cluster.address=10.0.0.1:6379"]))


@pytest.mark.parametrize("preset", presets())
def test_presets_lack_nothing_but_their_data(preset, tmp_path):
    settings = load_settings(preset)
    data = [source.path for source in settings.data.sources if source.path.startswith("SET-")]
    if data:
        with pytest.raises(SettingsError) as refusal:
            check_settings(settings)
        assert str(refusal.value) == f"data.sources.0.path: {data[0]}: no such file or directory"
        (tmp_path / "pairs.jsonl").touch()
        settings = load_settings(preset, [f"data.sources.0.path={tmp_path / 'pairs.jsonl'}"])
    check_settings(settings)


def test_a_stage_that_there_is_not_is_refused_before_anything_runs():
    settings = load_settings("mini")
    for until in ("score", "score/llama", "evaluate/base", None):
        check_settings(settings, until)
    with pytest.raises(SettingsError, match=r"--until scores: there is no such stage; did you mean score\?"):
        check_settings(settings, "scores")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("respond.rejected=nowhere:make", "respond.rejected: function nowhere:make: nowhere cannot be imported"),
        ("respond.rejected=math:pi", "respond.rejected: function math:pi: it cannot be called"),
        ("respond.models.0.engine=vlm", "respond.models.0.engine: there is no engine 'vlm'"),
        ("respond.models.0.path=/not/there", "respond.models.0.path: /not/there: there is no such directory"),
        ("respond.models.0.max_tokens=512", "respond.models.0.max_tokens: 512 tokens of answer leave no room"),
    ],
)
def test_what_is_wrong_with_responders_is_told_before_anything_runs(override, problem):
    with pytest.raises(SettingsError, match=re.escape(problem)):
        check_settings(load_settings("mini-questions", [override]))


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ('respond.models.0.prompts=["What is it?"]', "has to hold {question} once"),
        ('respond.models.0.prompts=["{question}", "{question}"]', "two prompts are equal"),
        ("respond.models.0.temperature=0", "at temperature 0 all answers are one"),
        ("respond.models=[]", "there is no model that answers"),
        ("respond.models.0.max_images=1", "respond.models.0.max_images shows 1 at most"),
        ("respond.models.0.name=..", "respond.models.0.name"),
    ],
)
def test_settings_of_responders_that_contradict_each_other_are_refused(override, problem):
    with pytest.raises(SettingsError, match=re.escape(problem)):
        load_settings("mini-questions", [override])

import pytest
import yaml
from pydantic import BaseModel

from carevl.errors import SettingsError
from carevl.settings import loader
from carevl.settings.loader import fill, load_settings, presets, reference
from carevl.settings.models import Judge
from carevl.settings.tree import Settings


def test_every_preset_loads_and_its_reference_loads_to_the_same_settings(tmp_path):
    for preset in presets():
        settings = load_settings(preset)
        file = tmp_path / f"{preset}.yaml"
        file.write_text("\n".join(reference(settings)))
        assert load_settings(str(file)) == settings


def test_every_field_is_documented():
    def undocumented(model, path=""):
        for name, field in model.model_fields.items():
            if not field.description:
                yield f"{path}{name}"
            inner = loader._inner(field.annotation)
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from undocumented(inner, f"{path}{name}.")

    assert list(undocumented(Settings)) == []


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("captoiner.prompt=x", "captoiner: there is no such setting; did you mean captioner?"),
        ("captioner.promt=x", "captioner.promt: there is no such setting; did you mean prompt?"),
        ("experts.0.egnine=vllm", "experts.0.egnine: there is no such setting; did you mean engine?"),
        ("data.sources.0.pth=x", "did you mean path?"),
        ("captioner.pool.concurrency=4..2", "captioner.pool.concurrency: '4..2' is no number of actors"),
        ("max_error_fraction=2", "max_error_fraction: Input should be less than or equal to 1 (found 2)"),
        ("seed", "write key=value"),
        ("experts.7.name=x", "7 is no index of a list of 3"),
        ("captioner.prompt.x=1", "captioner.prompt is a value and has no fields"),
        ("captioner.prompt={", "is not YAML"),
        ("captioner.pool.num_gpus=4", "captioner: pool.num_gpus reserves 4 GPUs, but an engine uses one"),
        ("captioner={path: x, tensor_parallel: 4, pool: {num_gpus: 2}}", "but pool.num_gpus reserves 2"),
        ("judge.tensor_parallel=2", "judge: tensor_parallel: 2 needs engine: vllm"),
        ("judge.dtype=bfloat6", "(found 'bfloat6'); did you mean bfloat16?"),
        ("judge.endpoint.timeout=5", "judge: endpoint: miniworld:judge is none; an endpoint is written as its address"),
        ("experts.0.endpoint={url: 'http://h', omit: [logprobs]}", "logprobs cannot be left out"),
        ("experts.0.endpoint={url: 'http://h', omit: [temprature]}", "(found 'temprature'); did you mean temperature?"),
        ("experts.0.endpoint={url: 'http://h', extra_body: {stream: true}}", "stream cannot be set"),
        ("experts.0.endpoint={url: 'http://h', extra_body: {x: 2020-01-01}}", "it cannot be sent as JSON"),
        (
            "experts.0.endpoint={url: 'http://h', retires: 1}",
            "endpoint.retires: there is no such setting; did you mean",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_do(override, says):
    with pytest.raises(SettingsError) as caught:
        load_settings("mini", [override])
    assert says in str(caught.value)


def test_an_unknown_preset_suggests_the_nearest():
    with pytest.raises(SettingsError, match="did you mean the preset mini"):
        load_settings("mnii")


def test_overrides_reach_values_in_lists_and_keep_their_types():
    settings = load_settings("mini", ["items=64", "experts.1.pool.num_gpus=0.5", "captioner.pool.concurrency=1..4"])
    assert settings.items == 64
    assert settings.experts[1].pool.num_gpus == 0.5
    assert settings.experts[0].pool.num_gpus == settings.experts[2].pool.num_gpus == 0  # they share a YAML anchor
    assert settings.captioner.pool.bounds == (1, 4)


def test_yes_is_a_word_where_a_word_is_asked_for():
    settings = load_settings("mini", ["experts.0={kind: llm, name: reader, path: org/model, scoring: yes}"])
    assert settings.experts[0].scoring == "yes"
    assert fill(Judge, {"path": "org/model"}, ["scoring=yes"]).scoring == "yes"


def test_the_settings_file_may_hold_only_settings(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("just words")
    with pytest.raises(SettingsError, match="holds no settings"):
        load_settings(str(file))
    file.write_text(yaml.safe_dump({"seed": 3}))
    with pytest.raises(SettingsError, match="data: Field required"):
        load_settings(str(file))


def test_a_path_may_begin_with_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    settings = load_settings("mini", ["data.sources=[{path: ~/pairs.jsonl}]", "judge.path=~/judge"])
    assert settings.data.sources[0].path == "/home/somebody/pairs.jsonl"
    assert settings.judge.path == "/home/somebody/judge"


def test_a_kind_and_an_engine_of_the_users_own_choose_what_they_use():
    own = "{name: e, path: m, kind: package.module:KIND, endpoint: {url: 'http://127.0.0.1/v1'}}"
    settings = load_settings(
        "mini", [f"experts.0={own}", "judge.engine=package.module:ENGINE", "judge.tensor_parallel=2"]
    )
    assert settings.experts[0].endpoint.url == "http://127.0.0.1/v1"
    assert settings.judge.tensor_parallel == 2


def test_no_item_may_have_more_images_than_a_model_that_sees_them_is_shown():
    assert load_settings("mini", ["data.max_images=9", "judge.max_images=9"]).data.max_images == 9
    with pytest.raises(SettingsError, match=r"data\.max_images .* 9 images, and judge\.max_images shows 8"):
        load_settings("mini", ["data.max_images=9"])
    seer = ["experts.1={name: seer, kind: vlm, path: org/seer}", "data.max_images=9", "judge.max_images=9"]
    with pytest.raises(SettingsError, match=r"experts\.1\.max_images"):
        load_settings("mini", seer)


def test_a_file_may_begin_with_a_preset_and_changes_what_it_names(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("preset: mini\nseed: 3\nsft: {epochs: 5}\nbenchmarks: []\n")
    mini, mine = load_settings("mini"), load_settings(str(file), ["dpo.epochs=2"])
    assert (mine.seed, mine.sft.epochs, mine.dpo.epochs, mine.benchmarks) == (3, 5, 2, [])
    assert mine.sft.model_copy(update={"epochs": mini.sft.epochs}) == mini.sft
    assert (mine.experts, mine.data) == (mini.experts, mini.data)


@pytest.mark.parametrize(("name", "problem"), [("minni", "did you mean mini"), ("[1]", "the presets are mini")])
def test_a_preset_that_is_none_is_named(name, problem, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"preset: {name}\nseed: 3\n")
    with pytest.raises(SettingsError, match=problem):
        load_settings(str(file))


def test_weights_of_an_earlier_version_are_read_as_the_rules_that_they_became(tmp_path):
    file = tmp_path / "before.yaml"
    file.write_text("preset: single-gpu\nselect: {evidence_weight: 0.0, answer_weight: 3.0, rules: {'a.b:C': 2.0}}\n")
    lines = []
    select = load_settings(str(file), log=lines.append).select
    assert select.rules == {"a.b:C": 2.0, "carevl.compare.words:AnswerWords": 3.0}
    [line] = lines
    assert (
        'select.answer_weight of an earlier version is read as select.rules: {"carevl.compare.words:AnswerWords"'
        in line
    )
    rules = load_settings("single-gpu", ["select.rules={'carevl.compare.words:AnswerWords': 3.0}"]).select.rules
    assert load_settings("single-gpu", ["select.answer_weight=3"]).select.rules == rules
    named = "select.rules={'carevl.compare.words:EvidenceWords': 1.0, 'a.b:C': 2.0}"
    assert load_settings("single-gpu", [named, "select.evidence_weight=0"]).select.rules == {"a.b:C": 2.0}
    with pytest.raises(SettingsError, match="EvidenceWords: Input should be a valid number"):
        load_settings("single-gpu", ["select.evidence_weight=much"])

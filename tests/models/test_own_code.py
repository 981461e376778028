"""Python code that comes with a model: never run and never asked about where the settings do not trust it."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from carevl.errors import UserError
from carevl.miniworld.weights import WEIGHTS
from carevl.models.engines import generator, image_scorer, language_model, scorer
from carevl.models.experts import EXPERT_KINDS
from carevl.models.image_scorer import ImageRewardScorer
from carevl.models.judge_files import check_judge
from carevl.models.language_model import CausalLanguageModel
from carevl.models.own_code import check_own_code
from carevl.models.prompts import load_processor
from carevl.models.reward_scorer import RewardScorer
from carevl.settings.models import Expert, Judge

Change = Callable[[dict[str, Any]], object]


def _trap(directory: Path) -> None:
    """Write code that leaves a file where it is run, under every name that transformers looks for."""
    sprung = f"import pathlib\npathlib.Path({str(directory / 'sprung')!r}).touch()\n"
    names = ("Config", "Model", "Tokenizer", "Processor", "ImageProcessor")
    (directory / "trap.py").write_text(sprung + "".join(f"class {name}: pass\n" for name in names))
    (directory / "custom_generate").mkdir()
    (directory / "custom_generate" / "generate.py").write_text(f"{sprung}def generate(*_, **__): pass\n")


def _edit(file: Path, change: Change) -> None:
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


def _model(tree: dict[str, Any]) -> None:
    own = ("AutoModelForImageTextToText", "AutoModelForSequenceClassification", "AutoModelForCausalLM", "AutoModel")
    tree["auto_map"] = {"AutoConfig": "trap.Config", **dict.fromkeys(own, "trap.Model")}


def _unknown_model(tree: dict[str, Any]) -> None:
    _model(tree)
    tree["model_type"] = "nobody_knows"


def _tokenizer(tree: dict[str, Any]) -> None:
    tree |= {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": ["trap.Tokenizer", "trap.Tokenizer"]}}


def _processor(tree: dict[str, Any]) -> None:
    tree |= {"processor_class": "Processor", "auto_map": {"AutoProcessor": "trap.Processor"}}


def _image_processor(tree: dict[str, Any]) -> None:
    own = {"image_processor_type": "ImageProcessor", "auto_map": {"AutoImageProcessor": "trap.ImageProcessor"}}
    tree["image_processor"] |= own


TRAPS: dict[str, tuple[str, Change]] = {
    "model": ("config.json", _model),
    "unknown model": ("config.json", _unknown_model),
    "tokenizer": ("tokenizer_config.json", _tokenizer),
    "processor": ("processor_config.json", _processor),
    "image processor": ("processor_config.json", _image_processor),
}
SEEING = {
    "check": check_judge,
    "judge": lambda path: generator(Judge(path=path, engine="transformers")),
    "processor": load_processor,
    "yes": lambda path: image_scorer(Expert(name="e", kind="vlm", path=path, engine="transformers")),
    "head": lambda path: image_scorer(Expert(name="e", kind="vlm", path=path, engine="transformers", scoring="head")),
    "head by itself": ImageRewardScorer,
}
READING = {
    "check": lambda path: EXPERT_KINDS["reward_model"].check(Expert(name="e", path=path)),
    "scorer": lambda path: scorer(Expert(name="e", path=path, engine="transformers")),
    "scorer by itself": RewardScorer,
    "language model": lambda path: language_model(Expert(name="e", path=path, engine="transformers")),
    "language model by itself": CausalLanguageModel,
    "encoder": lambda path: EXPERT_KINDS["reward_model"].encoder(Expert(name="e", path=path)),
}

BY_THEMSELVES = (load_processor, ImageRewardScorer, RewardScorer, CausalLanguageModel)


@pytest.fixture
def nobody_asked(monkeypatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked at the terminal"))


def _trapped(model: str, name: str, directory: Path) -> Path:
    shutil.copytree(WEIGHTS / model, directory)
    _trap(directory)
    file, change = TRAPS[name]
    if (directory / file).is_file():
        _edit(directory / file, change)
    return directory


def _cases() -> Iterator[Any]:
    for model, loaders in (("judge", SEEING), ("expert-llama", READING)):
        for trap in TRAPS:
            if model == "judge" or "processor" not in trap:
                yield from (pytest.param(model, trap, loaders[name], id=f"{trap}-{name}") for name in loaders)


@pytest.mark.usefixtures("nobody_asked")
@pytest.mark.parametrize(("model", "trap", "load"), _cases())
def test_code_that_nobody_trusts_is_not_run_whoever_loads_a_model(model, trap, load, tmp_path):
    directory = _trapped(model, trap, tmp_path / "model")
    # A class by itself raises what transformers does; what settings name is refused in a sentence.
    with suppress(UserError, *([ValueError] if load in BY_THEMSELVES else [])):
        load(str(directory))
    assert not (directory / "sprung").exists()


@pytest.mark.usefixtures("nobody_asked")
@pytest.mark.parametrize(
    ("model", "setting"),
    [
        (Judge(path="{}", engine="transformers"), "judge.trust_remote_code: true"),
        (Expert(name="e", kind="vlm", path="{}", engine="transformers"), "trust_remote_code of expert e: true"),
    ],
)
def test_advice_to_run_code_becomes_a_sentence_that_names_our_setting(model, setting, tmp_path):
    directory = _trapped("judge", "unknown model", tmp_path / "model")
    model = model.model_copy(update={"path": str(directory)})
    for load in (generator, lambda model: check_own_code(model, directory)):
        with pytest.raises(UserError) as refused:
            load(model)
        sentence = f"{directory} needs Python code that comes with it, which is not run; set {setting} if you trust"
        assert str(refused.value).startswith(sentence)
        assert "\n" not in str(refused.value)
        assert refused.value.__suppress_context__


@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_yes_at_the_terminal_runs_nothing(engine, tmp_path):
    directory = _trapped("judge", "unknown model", tmp_path / "model")
    load = f"from carevl import RewardModel; RewardModel({str(directory)!r}, engine={engine!r})"
    done = subprocess.run(
        [sys.executable, "-c", load], input="yes\ny\n" * 9, capture_output=True, text=True, check=False
    )
    assert "UserError" in done.stderr.splitlines()[-1]
    assert "custom code" not in done.stdout + done.stderr
    assert not (directory / "sprung").exists()


def test_every_automatic_class_is_told_whose_code_runs():
    """None, which is transformers' default, asks at the terminal."""
    calls = 0
    for file in (Path(__file__).parents[2] / "carevl").rglob("*.py"):
        if "miniworld" in file.parts:  # it makes the models that it loads
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and _is_automatic(node.func):
                names = {keyword.arg for keyword in node.keywords}
                assert names & {"trust_remote_code", None}, f"{file}:{node.lineno}"
                calls += 1
    assert calls > 15


def _is_automatic(function: ast.expr) -> bool:
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
        return False
    return function.attr in ("from_pretrained", "from_config") and function.value.id.startswith("Auto")

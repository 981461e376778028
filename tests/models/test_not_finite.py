"""What a model computes that is no finite number is an error of its rows, in every engine, and never an answer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from carevl import RewardModel
from carevl.errors import UserError
from carevl.miniworld.weights import WEIGHTS
from carevl.models.engines import close_engines, generate_with_row_errors, generator
from carevl.models.engines.base import GenerationRequest
from carevl.models.engines.parity import Reference, check_parity
from carevl.models.experts import load_expert
from carevl.models.row_errors import NOT_FINITE, Failure
from carevl.settings.models import Expert, Judge, Pool

PICTURE = Image.new("RGB", (96, 96), "red")
WORD = "yellow"
"""A token of the shipped models by itself."""
ENGINES = ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)]


def _copy(model: str, directory: Path, tensor: str, row: int | None) -> Path:
    """Copy a shipped model with NaN in a row of a tensor, or in all of it."""
    shutil.copytree(WEIGHTS / model, directory)
    weights = load_file(directory / "model.safetensors")
    weights[tensor][slice(None) if row is None else row] = torch.nan
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


def _token(model: str) -> int:
    from transformers import AutoTokenizer

    [token] = AutoTokenizer.from_pretrained(WEIGHTS / model)(f" {WORD}", add_special_tokens=False).input_ids
    return int(token)


def _embeddings(model: str) -> str:
    names = load_file(WEIGHTS / model / "model.safetensors")
    return next(name for name in names if name.endswith("embed_tokens.weight"))


@pytest.fixture(scope="module")
def broken_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge that computes NaN whatever it is asked."""
    return _copy("judge", tmp_path_factory.mktemp("broken") / "judge", "model.norm.weight", None)


@pytest.fixture(scope="module")
def cracked_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge that computes NaN where it reads one word."""
    directory = tmp_path_factory.mktemp("cracked") / "judge"
    return _copy("judge", directory, _embeddings("judge"), _token("judge"))


def _ask(model: Judge, prompts: list[str], **options: Any) -> list[Any]:
    try:
        requests = [GenerationRequest((PICTURE,), prompt) for prompt in prompts]
        return generate_with_row_errors(generator(model), requests, max_tokens=8, **options)
    finally:
        close_engines()


def _judge(path: Path, engine: str = "transformers") -> Judge:
    return Judge(path=str(path), engine=engine, max_model_len=512, pool=Pool(batch_size=4))


def test_a_judge_of_nan_judges_nothing(broken_judge: Path) -> None:
    judge = RewardModel(broken_judge)
    for ask in (
        lambda: judge.judge(PICTURE, "What is it?", ("A cat.", "A dog.")),
        lambda: judge.score(PICTURE, "What is it?", "A cat."),
        lambda: judge.rank(PICTURE, "What is it?", ("A cat.", "A dog.")),
    ):
        with pytest.raises(UserError, match="logits that are not finite; its weights may be damaged"):
            ask()


def test_every_row_of_a_judge_of_nan_fails_alone(broken_judge: Path) -> None:
    for options in ({}, {"temperature": 1.0}, {"logprob_texts": ["1"]}):
        for written in _ask(_judge(broken_judge), ["What is it?", "And this?"], **options):
            assert isinstance(written, Failure)
            assert written.kind == NOT_FINITE


@pytest.mark.vllm
def test_vllm_does_not_start_with_a_judge_of_nan(broken_judge: Path) -> None:
    with pytest.raises(UserError, match=r"does not answer prompts about drawn images.*logits that are not finite"):
        _ask(_judge(broken_judge, "vllm"), ["What is it?"])


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_beside_one_that_is_nan_have_their_texts(cracked_judge: Path, engine: str) -> None:
    prompts = ["What is it?", f"Is it {WORD}?", "How many are there?", f"A {WORD} cat?", "Is it red?"]
    expected = _ask(_judge(WEIGHTS / "judge", engine), [prompt for prompt in prompts if WORD not in prompt])
    written = _ask(_judge(cracked_judge, engine), prompts)
    assert [each.kind if isinstance(each, Failure) else "" for each in written] == ["", NOT_FINITE, "", NOT_FINITE, ""]
    assert [each.text for each in written if not isinstance(each, Failure)] == [each.text for each in expected]


def test_rows_that_are_scored_beside_one_that_is_nan_have_their_scores(tmp_path: Path) -> None:
    cracked = _copy("expert-llama", tmp_path / "expert", _embeddings("expert-llama"), _token("expert-llama"))
    rows = [
        (f"A circle.\n{n}", [response, "It is red."], "q")
        for n, response in enumerate(("None.", f"A {WORD} cat.", "Two."))
    ]
    settings = {"name": "e", "engine": "transformers"}
    [first, broken, last] = load_expert(Expert(path=str(cracked), **settings))(rows)
    expected = load_expert(Expert(path=str(WEIGHTS / "expert-llama"), **settings))(rows)
    assert isinstance(broken, Failure)
    assert (broken.kind, "its scores are [nan, " in broken.message) == (NOT_FINITE, True)
    assert first == pytest.approx(expected[0], abs=1e-4)
    assert last == pytest.approx(expected[2], abs=1e-4)


def test_a_sample_of_nan_is_no_parity() -> None:
    with pytest.raises(UserError, match=r"vllm gives 0\.1, nan for a sample of texts"):
        check_parity("a-model", Reference([0.1, 0.2], 0.0), [0.1, float("nan")], 0.05)

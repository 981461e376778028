"""Experts with quantised weights: each in the engine that runs it on a CPU, refused or passed on by the other."""

from __future__ import annotations

import pytest

from carevl.errors import UserError
from carevl.models.engines import language_model, scorer
from carevl.models.engines.vllm_scorer import VllmScorer
from carevl.models.fallbacks import collect_fallbacks
from carevl.models.reward_scorer import RewardScorer
from tests.helpers.heads import CONVERSATIONS
from tests.helpers.quantized import write_bitsandbytes, write_eight_bit_floats, write_packed, write_whole
from tests.models.test_heads import make_expert

pytestmark = pytest.mark.vllm


def runs_four_bits() -> bool:
    """Tell whether vLLM has a kernel for four bits here: on a CPU it is one for AVX-512."""
    import torch
    from vllm import _custom_ops

    assert _custom_ops
    return hasattr(torch.ops._C, "cpu_gemm_wna16")


@pytest.mark.parametrize(
    ("method", "package"), [("gptq", "optimum"), pytest.param("awq", "gptqmodel", marks=pytest.mark.nightly)]
)
def test_four_bits_run_in_vllm_and_transformers_says_what_it_lacks(method, package, tmp_path, caplog):
    write_packed(method, tmp_path / "packed", tmp_path / "rounded")
    expected = RewardScorer(tmp_path / "rounded").score(CONVERSATIONS)
    whole = RewardScorer(write_whole(tmp_path / "whole")).score(CONVERSATIONS)
    with pytest.raises(UserError, match=f"weights quantised by {method} here .*{package}.*; install what it names"):
        scorer(make_expert(tmp_path / "packed"))
    expert = make_expert(tmp_path / "packed", "vllm")
    if not runs_four_bits():
        with pytest.raises(UserError, match=f"vllm does not run weights quantised by {method} here .*; choose another"):
            scorer(expert, parity_tolerance=0.05)
        return
    engine = scorer(expert, parity_tolerance=0.05)
    assert isinstance(engine, VllmScorer)
    assert f"not held against those of transformers, which does not run it (UserError: {tmp_path}" in caplog.text
    scores = engine.score(CONVERSATIONS)
    engine.close()
    assert scores == pytest.approx(expected, abs=0.03)
    assert max(abs(a - b) for a, b in zip(scores, whole, strict=True)) > 0.1


def test_eight_bits_of_bitsandbytes_run_in_transformers(tmp_path):
    whole = RewardScorer(write_whole(tmp_path / "whole")).score(CONVERSATIONS)
    expert = make_expert(write_bitsandbytes(tmp_path / "eight"), "vllm")
    with collect_fallbacks() as fallbacks:
        engine = scorer(expert)
    assert [sentence for sentence in fallbacks if "vllm does not read weights quantised by bitsandbytes" in sentence]
    assert engine.score(CONVERSATIONS) == pytest.approx(whole, abs=0.05)


def test_a_format_that_needs_a_gpu_is_refused_in_a_sentence(tmp_path):
    expert = make_expert(write_whole(tmp_path), "vllm", dtype="bfloat16", engine_args={"quantization": "fp8"})
    with pytest.raises(UserError, match=r"vllm does not run weights quantised by fp8 here .*; choose another format"):
        scorer(expert)


@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("load", [scorer, language_model], ids=["scorer", "language_model"])
def test_stored_eight_bit_floats_run_or_are_refused_in_a_sentence(load, engine, tmp_path):
    expert = make_expert(write_eight_bit_floats(tmp_path), engine, parity_tolerance=None)
    with pytest.raises(UserError, match=f"{engine} does not run weights quantised by fp8 here .*; choose another"):
        load(expert)

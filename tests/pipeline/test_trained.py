"""What `carevl plan` says of a judge's training before it runs."""

from __future__ import annotations

import pytest

from carevl.pipeline.trained import trained_lines
from carevl.settings.loader import load_settings

pytestmark = pytest.mark.vllm


def test_adapters_and_what_is_frozen_are_counted(family_directory):
    lines = list(trained_lines(load_settings("mini"), {"sft", "dpo"}, family_directory("internvl")))
    assert [line.split()[0] for line in lines] == ["sft", "dpo"]
    assert all("internvl" not in line for line in lines)


def test_a_judge_that_cannot_share_prefixes_is_named_with_the_reason(family_directory):
    _, sentence = trained_lines(load_settings("mini"), {"sft"}, family_directory("qwen3_5"))
    assert sentence.startswith("sft")
    assert "qwen3_5 cannot share prefixes: it has linear_attention" in sentence
    settings = load_settings("mini", overrides=["sft.packing=plain"])
    assert len(list(trained_lines(settings, {"sft"}, family_directory("qwen3_5")))) == 1


def test_nothing_is_said_of_a_judge_that_is_not_here():
    assert list(trained_lines(load_settings("mini"), {"sft"}, None)) == []

"""Judges of several families, trained and written as files, under vLLM."""

import numpy as np
import pytest
import torch
import transformers as hf

from carevl.models.engines.base import GenerationRequest
from carevl.models.engines.transformers import ImageTextGenerator
from carevl.models.engines.vllm import VllmGenerator
from carevl.models.locate import Weights
from carevl.settings.models import Judge, Pool
from carevl.settings.training import Lora, Training
from carevl.training.judge import export
from carevl.training.trainable import make_trainable
from tests.helpers.families import draw_picture

pytestmark = [pytest.mark.vllm, pytest.mark.nightly]


@pytest.mark.parametrize("adapted", [True, False], ids=["merged", "whole"])
@pytest.mark.parametrize("family", ["internvl", "idefics3", "llava_next", "qwen3_vl", "qwen3_vl_moe", "glm4v_moe"])
def test_what_was_trained_writes_the_same_texts_as_under_transformers(family, adapted, family_directory, tmp_path):
    base = family_directory(family)
    model = hf.AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    trained = make_trainable(model, Training(lora=Lora(rank=4, alpha=8) if adapted else None))
    torch.manual_seed(0)
    for name, weight in trained.named_parameters():
        if weight.requires_grad and (".lora_B." in name or not adapted):
            weight.data += 0.05 * torch.randn_like(weight)
    export(trained, None, Weights.of(str(base)), tmp_path)
    requests = [GenerationRequest((draw_picture(n),), f"How many red circles are there? {n}") for n in range(6)]
    texts = {"max_tokens": 12, "logprob_texts": ["1", "2"]}
    expected = ImageTextGenerator(tmp_path / "judge").generate(requests, **texts)
    path = str(tmp_path / "judge")
    engine = VllmGenerator(Judge(path=path, dtype="float32", max_model_len=1024, pool=Pool(batch_size=8)))
    actual = engine.generate(requests, **texts)
    engine.close()
    before = ImageTextGenerator(base).generate(requests, **texts)
    assert [g.text for g in actual] == [g.text for g in expected] != [g.text for g in before]
    for ours, theirs in zip(actual, expected, strict=True):
        assert np.array(ours.logprobs) == pytest.approx(np.array(theirs.logprobs), abs=1e-2)

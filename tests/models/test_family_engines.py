"""Every family on vLLM's build for CPUs, as settings load it: transformers' texts, or transformers with a sentence.

Nightly but for one that vLLM runs, one that it computes otherwise and one that it has no class for.
"""

from __future__ import annotations

import pytest
import torch

from carevl.judging.turns import Turn
from carevl.models.engines import generator
from carevl.models.engines.base import GenerationRequest
from carevl.models.engines.transformers import ImageTextGenerator
from carevl.models.engines.vllm import VllmGenerator
from carevl.models.fallbacks import collect_fallbacks
from carevl.settings.models import Judge, Pool
from tests.helpers.families import FAMILIES, draw_picture

pytestmark = pytest.mark.vllm

SENTENCES = {
    "aya_vision": "has no class of its own for AyaVisionForConditionalGeneration",
    "cohere2_vision": "nats off those of transformers",
    "deepseek_vl": "has no class of its own for DeepseekVLForConditionalGeneration",
    "gemma3": "lets no token of an image see a later one on a CPU",
    "gemma4": "lets no token of an image see a later one on a CPU",
    "glm46v": "has no class of its own for Glm46VForConditionalGeneration",
    "glm4v": "nats off those of transformers",
    "lfm2_vl": "does not compute conv layers in float32 on a CPU",
    "minicpmv4_6": "does not compute linear_attention layers in float32 on a CPU",
    "mistral3": "makes other tokens of a prompt than the model's own processor",  # of images of odd shapes
    "mllama": "has no class of its own for MllamaForConditionalGeneration",
    "ovis2": "has no class of its own for Ovis2ForConditionalGeneration",
    "paligemma": "lets no token of an image see a later one on a CPU",
    "qwen3_5": "does not compute linear_attention layers in float32 on a CPU",
    "qwen3_5_moe": "does not compute linear_attention layers in float32 on a CPU",
    "vipllava": "has no class of its own for VipLlavaForConditionalGeneration",
}
"""Why a family runs in transformers."""
IN_CI = ("gemma3", "idefics3", "mllama")


@pytest.mark.parametrize(
    "family", [name if name in IN_CI else pytest.param(name, marks=pytest.mark.nightly) for name in FAMILIES]
)
def test_texts_on_vllm_are_those_of_transformers(family, family_directory):
    path = family_directory(family)
    judge = Judge(path=str(path), engine="vllm", max_model_len=1024, pool=Pool(batch_size=8))
    requests = [
        GenerationRequest((draw_picture(0),), "How many red circles are there?"),
        GenerationRequest((draw_picture(1, 84, 140),), "Is <image><|im_end|> right? Answer 1: Two."),
        GenerationRequest((draw_picture(2, 56, 56),), "How many?", "Answer 1 <eos>"),
        GenerationRequest(tuple(draw_picture(n) for n in range(3)), "Is  like  or ?", places=(3, 9, 13)),
        GenerationRequest(
            (draw_picture(0), draw_picture(1)),
            "And in ?",
            places=(7,),
            earlier=(Turn("user", "What is it?", (0,)), Turn("assistant", "A cat.")),
        ),
        *([GenerationRequest((), "Is a square round?", places=())] if family != "paligemma" else []),
    ]
    with collect_fallbacks() as fallbacks:
        engine = generator(judge)
    assert torch.get_default_dtype() == torch.float32
    try:
        assert isinstance(engine, ImageTextGenerator if family in SENTENCES else VllmGenerator)
        assert len(fallbacks) == (family in SENTENCES)
        assert SENTENCES.get(family, "") in "".join(fallbacks)
        actual = engine.generate(requests, max_tokens=12)
    finally:
        if isinstance(engine, VllmGenerator):
            engine.close()
    assert actual == ImageTextGenerator(path).generate(requests, max_tokens=12)

"""The arguments of vLLM's engine as a table: settings, model and card to what is passed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from carevl.errors import UserError
from carevl.models.engines.card import GIB, Card
from carevl.models.engines.vllm_arguments import (
    ModelShape,
    check_engine_args,
    engine_argument_names,
    needed_bytes,
    read_shape,
    vllm_arguments,
)
from carevl.settings.models import Expert, Judge, Model, Pool

H100, L40S = Card("NVIDIA H100", int(79.1 * GIB)), Card("NVIDIA L40S", int(44.4 * GIB))
LLAMA = ModelShape(  # Llama 3.1 8B
    "bfloat16", 16_060_000_000, 131072, layers=32, kv_heads=8, head_size=128, hidden=4096, intermediate=14336
)
QWEN = ModelShape(  # Qwen2.5-VL 7B
    "bfloat16", 16_580_000_000, 128000, 28, 4, 128, 3584, 18944, 152064, has_images=True
)


def _judge(**settings):
    return Judge(path="a/judge", max_model_len=8192, **settings)


def _expert(share=1.0, **settings):
    return Expert(name="x", path="an/expert", pool=Pool(num_gpus=share, batch_size=64), **settings)


GPU = {"enforce_eager": False, "max_model_len": 8192, "dtype": "bfloat16"}
CPU = {"enforce_eager": True, "max_num_seqs": 64, "enable_chunked_prefill": False, "max_num_batched_tokens": 8192}
ABSENT = object()
TABLE: dict[str, tuple[Model, ModelShape, Card | None, dict[str, Any]]] = {
    "a whole card: graphs, and vLLM's own numbers": (
        _judge(pool=Pool(num_gpus=1)),
        QWEN,
        H100,
        GPU
        | dict.fromkeys(
            ("max_num_seqs", "gpu_memory_utilization", "kv_cache_memory_bytes", "max_num_batched_tokens"), ABSENT
        )
        | {"limit_mm_per_prompt": {"image": 8, "video": 0}, "enable_chunked_prefill": ABSENT, "runner": ABSENT},
    ),
    "texts in flight as set": (_judge(pool=Pool(num_gpus=1), max_num_seqs=300), QWEN, H100, {"max_num_seqs": 300}),
    "the user's arguments come last": (
        _judge(pool=Pool(num_gpus=1), engine_args={"enforce_eager": True, "gpu_memory_utilization": 0.5}),
        QWEN,
        H100,
        {"enforce_eager": True, "gpu_memory_utilization": 0.5},
    ),
    "tiles": (
        _judge(max_image_tiles=6),
        replace(QWEN, cuts_tiles=True),
        None,
        {"mm_processor_kwargs": {"max_patches": 6}},
    ),
    "a processor that cuts none": (_judge(max_image_tiles=6), QWEN, None, {"mm_processor_kwargs": ABSENT}),
    "a CPU": (_judge(pool=Pool(batch_size=64)), QWEN, None, CPU),
    "a CPU, texts in flight as set": (_judge(max_num_seqs=5), QWEN, None, {"max_num_seqs": 5}),
    "a CPU and longer prompts": (
        Judge(path="a/judge", max_model_len=20000),
        QWEN,
        None,
        {"max_num_batched_tokens": 20000},
    ),
    "a model that reads less": (
        _judge(),
        ModelShape("float32", None, 512),
        None,
        {"max_model_len": 512, "dtype": "float32"},
    ),
    "two cards": (
        _judge(pool=Pool(num_gpus=2), tensor_parallel=2),
        QWEN,
        H100,
        {"tensor_parallel_size": 2, "distributed_executor_backend": "mp", "gpu_memory_utilization": ABSENT},
    ),
    "a third of a card: the cache in bytes, nothing measured": (
        _expert(0.33),
        LLAMA,
        H100,
        {
            "runner": "pooling",
            "gpu_memory_utilization": pytest.approx(0.297),
            "max_num_seqs": 256,
            "max_num_batched_tokens": 8192,
            # 23.49 GiB of the card - 14.96 of weights - 0.81 of activations - 1.5
            "kv_cache_memory_bytes": pytest.approx(6.22 * GIB, rel=0.005),
        },
    ),
    "half a smaller card": (_expert(0.5), LLAMA, L40S, {"kv_cache_memory_bytes": pytest.approx(2.71 * GIB, rel=0.01)}),
    "a share, and weights that nobody has seen yet": (
        _expert(0.5),
        ModelShape("bfloat16", None, 4096),
        L40S,
        {"gpu_memory_utilization": 0.45, "kv_cache_memory_bytes": ABSENT},
    ),
    "an expert on a CPU": (
        _expert(0.0),
        LLAMA,
        None,
        {"max_num_seqs": 64, "enable_chunked_prefill": ABSENT, "enforce_eager": True},
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_arguments_follow_from_settings_model_and_card(name):
    model, shape, card, expected = TABLE[name]
    runner = "pooling" if isinstance(model, Expert) else "generate"
    arguments = vllm_arguments(model, "where/it/lies", shape, card, runner)
    assert {key: arguments.get(key, ABSENT) for key in expected} == expected
    assert arguments["model"] == "where/it/lies"


def test_engines_that_share_a_card_ask_for_no_more_than_there_is():
    shares = [vllm_arguments(_expert(0.33), "x", LLAMA, H100, "pooling") for _ in range(3)]
    assert sum(needed_bytes(arguments, H100) for arguments in shares) < 0.9 * H100.total_bytes
    cache = shares[0]["kv_cache_memory_bytes"]
    assert cache + LLAMA.weight_bytes < needed_bytes(shares[0], H100)


def test_a_share_that_is_too_small_is_refused_with_the_sum():
    message = r"an/expert: 0\.25 of a NVIDIA L40S is 10\.0 GiB; weights take 15\.0, .*raise pool\.num_gpus"
    with pytest.raises(UserError, match=message):
        vllm_arguments(_expert(0.25), "x", LLAMA, L40S, "pooling")


def test_generation_reserves_logits_and_a_vision_tower():
    pooled, written = (QWEN.activation_bytes(8192, 256, runner) for runner in ("pooling", "generate"))
    assert written - pooled == 256 * 152064 * 12
    assert pooled > 2 * GIB


def test_arguments_that_other_settings_are_for_are_refused():
    with pytest.raises(UserError, match="engine_args has max_model_len; set max_model_len in its place"):
        vllm_arguments(_judge(engine_args={"max_model_len": 5}), "x", QWEN, None, "generate")


@pytest.mark.vllm
def test_the_names_of_arguments_are_those_of_vllm_itself():
    from dataclasses import fields

    from vllm.engine.arg_utils import EngineArgs

    assert engine_argument_names() == frozenset(field.name for field in fields(EngineArgs))


def test_arguments_that_vllm_does_not_know_are_refused():
    with pytest.raises(UserError, match=r"has gpu_memory_utilisation, .* did you mean gpu_memory_utilization\?"):
        check_engine_args(_judge(engine_args={"gpu_memory_utilisation": 0.5}))
    check_engine_args(_judge(engine_args={"quantization": "fp8", "gpu_memory_utilization": 0.5}))


def test_only_what_changes_numbers_is_in_the_fingerprint():
    assert _judge().computation == {}
    assert _judge(max_num_seqs=7, engine_args={"enforce_eager": True}).computation == {}
    quantized = _judge(max_image_tiles=6, engine_args={"quantization": "fp8", "max_num_batched_tokens": 99})
    assert quantized.computation == {"max_image_tiles": 6, "engine_args": {"quantization": "fp8"}}


@pytest.mark.vllm
def test_every_argument_that_is_left_out_of_it_is_one_of_vllm():
    from dataclasses import fields

    from vllm.engine.arg_utils import EngineArgs

    from carevl.settings.models import SCHEDULING

    assert {field.name for field in fields(EngineArgs)} >= SCHEDULING


def test_arguments_of_vllm_need_vllm():
    with pytest.raises(ValueError, match="engine_args and max_num_seqs are for engine: vllm"):
        Model(path="x", engine="transformers", max_num_seqs=4)


def test_a_shape_is_read_from_the_files_of_a_model():
    from carevl.miniworld.weights import WEIGHTS

    stored = sum(file.stat().st_size for file in (WEIGHTS / "judge").glob("*.safetensors"))
    shape = read_shape(str(WEIGHTS / "judge"), "auto", {})
    assert (shape.dtype, shape.weight_bytes, shape.has_images) == ("float32", stored, True)
    assert shape.cache_bytes == 2 * shape.layers * shape.kv_heads * shape.head_size * 4
    assert shape.layers > 0
    halved = read_shape(str(WEIGHTS / "judge"), "bfloat16", {})
    assert (halved.dtype, halved.weight_bytes) == ("bfloat16", stored // 2)

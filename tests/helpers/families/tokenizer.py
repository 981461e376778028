"""A fast tokenizer that encodes any text: byte-level BPE, trained on what judges read and write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from carevl.judging.prompts import Task, judge_prompt, write_judgment

_ANSWERS = ("There are three red circles to the left of the blue square.", "Two. None of them is green.")
_PROMPTS: Mapping[Task, int] = {"pairwise": 2, "pointwise": 1, "ranking": 2}
_TEXTS = (
    "Describe the image in detail. How many red circles are there? Is there a yellow cross above it? Yes. No.",
    "The image shows a red square on a blue background, above a yellow cross; a small cat, a dog, black and white.",
    "user assistant system model USER ASSISTANT User Assistant image text question answer judge score",
    *(judge_prompt(task, "What is to the left of it?", _ANSWERS[:shown]) for task, shown in _PROMPTS.items()),
    write_judgment("The image shows a red circle.", winner=1),
    write_judgment("The image shows no green square.", winner=2),
    write_judgment("There are two crosses.", rating=4),
    write_judgment("There are five triangles.", ranking=(2, 1, 3)),
)


def make_tokenizer(
    specials: Sequence[str] = (),
    *,
    bos: str | None = None,
    eos: str = "<|im_end|>",
    pad: str = "<|endoftext|>",
    writes_bos: bool = False,
    named: Mapping[str, str] | None = None,
    named_last: bool = False,
    size: int = 800,
) -> Any:
    """Return a fast tokenizer of about `size` tokens.

    Args:
        writes_bos: encoded texts begin with the start token.
        named: special tokens that become attributes, such as `image_token`.
        named_last: these stand behind all others, as tokens do that were added to a finished language model.
    """
    import transformers as hf
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    named = named or {}
    every = dict.fromkeys([pad, *([bos] if bos else []), eos, *specials, *(() if named_last else named.values())])
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True) for token in every],
        show_progress=False,
    )
    made.train_from_iterator(_TEXTS * 4, trainer)
    if writes_bos:
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, made.token_to_id(bos))]
        )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        padding_side="left",
        **({"extra_special_tokens": dict(named)} if named else {}),
    )

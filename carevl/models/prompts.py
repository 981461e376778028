"""The tokens of a prompt: one place that makes them for engines, references, training and serving.

The processor writes them from the model's own chat template, as its `apply_chat_template(tokenize=True)` does. A text
that names control tokens (`<|im_end|>`, `<image>`) is read as it is written, letter by letter: it can neither end a
turn nor stand for an image.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from carevl.errors import UserError
from carevl.judging.markup import thinking_tags
from carevl.models.families.base import Family
from carevl.models.row_errors import REFUSED, Failure, first_line, is_out_of_memory

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from carevl.settings.asking import Asking

Span = tuple[int, int]
"""Begin and end of a part of a text, in characters."""

_SENTINELS = range(0x100000, 0x10FFFE)
"""Characters for private use, of Unicode's last plane."""
_BLANK = "\u2581 \t\r\n"
"""Characters of added tokens that stand for blank space; there are such tokens, and they control nothing."""
_ANY = Family("")
_control_ids: WeakKeyDictionary[Any, tuple[int, frozenset[int]]] = WeakKeyDictionary()
"""Size of a tokenizer and the ids of its control tokens, which thousands of added ones make slow to list."""


@dataclass(frozen=True)
class Prompt:
    """A user turn about one image, and the words that its reply begins with.

    The image stands before the text, or else behind it. `response` is a whole reply, which the template closes, in
    place of one that is still to be written.
    """

    text: str
    response_prefix: str = ""
    image_first: bool = True
    response: str | None = None


@dataclass(frozen=True)
class EncodedPrompts:
    """A batch of prompts as a model reads them; n_i tokens in prompt i.

    Attributes:
        ids: token ids of every prompt, those of its image among them, unpadded; special tokens are there once.
        per_token: the processor's inputs that have an entry per token (`mm_token_type_ids`, `token_type_ids`,
            `cross_attention_mask`) by name, [n_i, ...] for every prompt, unpadded.
        images: its other inputs, as it wrote them for the whole batch (`pixel_values`, `image_grid_thw`,
            `image_sizes`, ...).
    """

    ids: tuple[list[int], ...]
    per_token: dict[str, list[Tensor]]
    images: dict[str, Any]


def load_processor(path: str, *, trust_remote_code: bool = False) -> Any:
    """Load the processor of a vision-language model.

    Args:
        path: a directory, or a hub id.
        trust_remote_code: whether Python code that comes with it may run; said either way, nobody is asked.

    Raises:
        UserError: its tokenizer does not tell which characters a token stands for, as slow ones do not.
    """
    from transformers import AutoProcessor

    processor: Any = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        return processor
    check_tokenizer(tokenizer, path)
    ensure_padding(tokenizer)
    return processor


def ensure_padding(tokenizer: Any) -> None:
    """Let a tokenizer without a token for padding fill rows up by its end; the attention mask tells which those are."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def ask_as(processor: Any, asking: Asking | None) -> Any:
    """Return a copy of a processor by which prompts are written in a way of asking; None: as carevl asks."""
    if asking is None:
        return processor
    asked = copy.copy(processor)
    asked.carevl_asking = asking
    return asked


def check_tokenizer(tokenizer: Any, path: str) -> None:
    """Check that a tokenizer is a fast one.

    Raises:
        UserError: it is a slow one, or mistral-common's.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{path} has a slow tokenizer only ({type(tokenizer).__name__}), which cannot tell the characters of a "
            "token; add the tokenizer.json of a fast one, as `AutoTokenizer.from_pretrained(…).save_pretrained` writes"
        )


def render_prompt(processor: Any, prompt: Prompt) -> str:
    """Return all that stands before the reply's new words, in the model's own chat template."""
    return _render_turn(processor, prompt) + prompt.response_prefix


def encode_prompts(
    processor: Any, prompts: Sequence[Prompt], images: Sequence[Image], family: Family = _ANY
) -> EncodedPrompts:
    """Encode prompts, each about one image.

    A reply's first words are encoded by themselves, as the reply is in training.

    Args:
        family: of the model, which tells what its inputs per token are for a reply.

    Raises:
        Exception: of any kind, where the processor refuses an image or a text.
    """
    import torch

    guarded, turns = _guard(processor, prompts)
    written = dict(
        guarded(
            text=turns,
            images=[[image] for image in images],
            return_tensors="pt",
            padding=True,
            **_special_tokens(processor.tokenizer, turns),
        )
    )
    written.pop("labels", None)  # PaliGemma's processor writes them, for training with suffixes
    ids, present = written.pop("input_ids"), written.pop("attention_mask").bool()
    of_images = set(processor.image_processor.model_input_names)
    per_token = {
        name: [entry[seen] for entry, seen in zip(value, present, strict=True)]
        for name, value in written.items()
        if name not in of_images and getattr(value, "shape", ())[:2] == ids.shape
    }
    encoded = [row[seen].tolist() for row, seen in zip(ids, present, strict=True)]
    for number, prompt in enumerate(prompts):
        if prompt.response_prefix:
            begun = encode_text(processor.tokenizer, prompt.response_prefix)
            encoded[number] += begun
            for name, values in per_token.items():
                more = family.continue_inputs(name, values[number], len(begun))
                values[number] = torch.cat([values[number], more])
    return EncodedPrompts(
        ids=tuple(encoded),
        per_token=per_token,
        images={name: value for name, value in written.items() if name not in per_token},
    )


def encode_with_row_errors(
    processor: Any,
    prompts: Sequence[Prompt],
    images: Sequence[Image],
    family: Family = _ANY,
    max_model_len: int | None = None,
) -> tuple[EncodedPrompts | None, dict[int, Failure]]:
    """Encode prompts as `encode_prompts`, but for those that the processor refuses, or that are too long.

    Args:
        max_model_len: tokens of prompt and answer together, of which an answer has one at least.

    Returns:
        The others, None where there are none; and why each of those is refused, by its position.
    """
    encoded, refused = _encode_taken(processor, prompts, images, family)
    if encoded is None or max_model_len is None:
        return encoded, refused
    taken = [number for number in range(len(prompts)) if number not in refused]
    long = {
        number: Failure(
            REFUSED,
            f"its prompt and image have {len(ids)} tokens, and prompt and answer together may have {max_model_len}; "
            "raise max_model_len if the model allows it, or shorten the text",
        )
        for number, ids in zip(taken, encoded.ids, strict=True)
        if len(ids) >= max_model_len
    }
    if long:
        kept = [number for number in taken if number not in long]
        encoded = (
            encode_prompts(processor, [prompts[i] for i in kept], [images[i] for i in kept], family) if kept else None
        )
    return encoded, refused | long


def _encode_taken(
    processor: Any, prompts: Sequence[Prompt], images: Sequence[Image], family: Family
) -> tuple[EncodedPrompts | None, dict[int, Failure]]:
    """Encode the prompts that the processor does not refuse."""
    try:
        return encode_prompts(processor, prompts, images, family), {}
    except Exception as error:
        refused = {}
        for number, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
            try:
                encode_prompts(processor, [prompt], [image], family)
            except Exception as own:
                if isinstance(own, UserError) or is_out_of_memory(own):
                    raise
                refused[number] = Failure(REFUSED, f"the processor does not take it: {first_line(own)}")
        if not refused:
            raise error from None
    kept = [number for number in range(len(prompts)) if number not in refused]
    if not kept:
        return None, refused
    return encode_prompts(processor, [prompts[i] for i in kept], [images[i] for i in kept], family), refused


def encode_turns(processor: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the token ids of prompts in which one placeholder stands for the image, without a reply's first words."""
    guarded, turns = _guard(processor, prompts)
    ids: list[list[int]] = guarded.tokenizer(turns, **_special_tokens(processor.tokenizer, turns))["input_ids"]
    return ids


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text without any control token, such as a reply."""
    return encode_text_with_offsets(tokenizer, text)[0]


def encode_reply(tokenizer: Any, text: str) -> tuple[list[int], list[Span]]:
    """Return the token ids of what a judge wrote, and the characters that each stands for.

    The tags around its thinking are the tokens that it wrote, where the tokenizer has such; nothing else controls.
    """
    return encode_text_with_offsets(tokenizer, text, thinking_tags(text))


def encode_text_with_offsets(tokenizer: Any, text: str, tags: Sequence[Span] = ()) -> tuple[list[int], list[Span]]:
    """Return the token ids of a text without any control token, and the characters that each stands for.

    Args:
        tags: parts that may be control tokens.
    """
    written = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = written["input_ids"], written["offset_mapping"]
    control = control_ids(tokenizer)
    if control.isdisjoint(ids):
        return ids, offsets
    plain = _PlainStrings(tokenizer, control)
    replacements = {
        i: plain(text[slice(*offsets[i])])
        for i, token in enumerate(ids)
        if token in control and not any(begin <= offsets[i][0] < end for begin, end in tags)
    }
    spliced = _splice({"ids": ids, "offsets": offsets}, "ids", replacements)
    return spliced["ids"], spliced["offsets"]


def end_ids(generation: Any, tokenizer: Any) -> set[int]:
    """Return the ids of the tokens that end a reply: those of `generation_config`, and the tokenizer's own.

    Args:
        generation: `eos_token_id` of the generation settings: an id, several, or None.
    """
    several = generation if isinstance(generation, list) else [generation]
    return {*several, tokenizer.eos_token_id} - {None}


def control_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of the tokens that no text may become: special ones, and added ones that are not blank space."""
    known = _control_ids.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        added = tokenizer.added_tokens_decoder.items()
        ids = frozenset(i for i, token in added if token.special or token.content.strip(_BLANK))
        known = _control_ids[tokenizer] = len(tokenizer), ids
    return known[1]


def find_control_strings(tokenizer: Any, texts: Sequence[str], placeholders: Iterable[str] = ()) -> list[list[Span]]:
    """Return the parts of texts that would be read as control tokens, or as one of the placeholders, in their order.

    Blank space around them that the tokenizer counts in is not among them.
    """
    if not texts:
        return []
    written = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    control = control_ids(tokenizer)
    pattern = re.compile("|".join(map(re.escape, sorted(placeholders, key=len, reverse=True))) or r"(?!)")
    found = []
    for text, ids, offsets in zip(texts, written["input_ids"], written["offset_mapping"], strict=True):
        spans = [span for i, span in zip(ids, offsets, strict=True) if i in control and span[0] < span[1]]
        if pattern.search(text):
            spans += [match.span() for match in pattern.finditer(text)]
        found.append(_disjoint(_trim(text, span) for span in spans))
    return found


class RestoringTokenizer:
    """A tokenizer that reads characters as the strings that they stand for, and encodes these as plain text.

    It has all attributes of the tokenizer that it wraps, and is called with a list of texts, or two of pairs.

    Args:
        tokenizer: a fast one.
        strings: the string of every character.
    """

    def __init__(self, tokenizer: Any, strings: Mapping[str, str]) -> None:
        self._inner, self._strings = tokenizer, strings
        self._pattern = re.compile("|".join(map(re.escape, strings)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __len__(self) -> int:
        return len(self._inner)

    def __call__(
        self,
        text: Sequence[str],
        text_pair: Sequence[str] | None = None,
        *,
        padding: bool | str = False,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        **options: Any,
    ) -> Any:
        """Encode texts; arguments and result as the wrapped tokenizer's, `char_to_token` the one of its methods."""
        columns = [text] if text_pair is None else [text, text_pair]
        restored = [[self._restore(entry) for entry in column] for column in columns]
        written = self._inner(
            *([words for words, _ in column] for column in restored), return_offsets_mapping=True, **options
        )
        control = control_ids(self._inner)
        plain = _PlainStrings(self._inner, control)
        rows = []
        for number in range(len(text)):
            fields = {name: values[number] for name, values in written.items()}
            replacements = {}
            for i, (part, (begin, end)) in enumerate(
                zip(written.sequence_ids(number), fields["offset_mapping"], strict=True)
            ):
                if part is None or fields["input_ids"][i] not in control:
                    continue
                words, own = restored[part][number]
                if any(begin < last and first < end for first, last in own):
                    replacements[i] = plain(words[begin:end])
            rows.append(_splice(fields, "input_ids", replacements))
        places = [row.pop("offset_mapping") for row in rows]
        joined = {name: [row[name] for row in rows] for name in rows[0]}
        padded = self._inner.pad(joined, padding=padding, padding_side=padding_side, return_tensors=return_tensors)

        def char_to_token(number: int, char: int) -> int | None:
            at = len(self._restore(text[number][:char])[0])
            present = [column for column, seen in enumerate(padded["attention_mask"][number]) if seen]
            covers = (begin <= at < end for begin, end in places[number])
            return next((column for column, covered in zip(present, covers, strict=True) if covered), None)

        padded.char_to_token = char_to_token
        return padded

    def _restore(self, text: str) -> tuple[str, list[Span]]:
        """Return the text with its strings, and where these are in it."""
        parts, spans, at, length = [], [], 0, 0
        for match in self._pattern.finditer(text):
            before, string = text[at : match.start()], self._strings[match.group()]
            length += len(before)
            spans.append((length, length + len(string)))
            length += len(string)
            parts += [before, string]
            at = match.end()
        return "".join([*parts, text[at:]]), spans


def replace_control_strings(
    tokenizer: Any, texts: Sequence[str], placeholders: Iterable[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """Return texts with a character for private use in place of every control string, and the string of each.

    The texts may then go through a template; a `RestoringTokenizer` encodes what comes of it.
    """
    spans = find_control_strings(tokenizer, texts, placeholders)
    found = [text[slice(*span)] for text, own in zip(texts, spans, strict=True) for span in own]
    if not found:
        return list(texts), {}
    present = set("".join(texts))
    free = (chr(code) for code in _SENTINELS if chr(code) not in present)
    sentinels = dict(zip(dict.fromkeys(found), free, strict=False))
    replaced = []
    for text, own in zip(texts, spans, strict=True):
        bounds = [0, *itertools.chain.from_iterable(own), len(text)]
        pieces = [text[begin:end] for begin, end in itertools.pairwise(bounds)]
        replaced.append("".join(sentinels[piece] if n % 2 else piece for n, piece in enumerate(pieces)))
    return replaced, {sentinel: string for string, sentinel in sentinels.items()}


class _PlainStrings:
    """Token ids of strings as plain text, each encoded once."""

    def __init__(self, tokenizer: Any, control: frozenset[int]) -> None:
        self.tokenizer, self.control = tokenizer, control
        self._known: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._encode(text)
        return self._known[text]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if len(text) < 2 or self.control.isdisjoint(ids):
            return ids
        # Added tokens that are not special are found all the same, but not in parts of them.
        return self._encode(text[:1]) + self._encode(text[1:])


def _splice(
    fields: Mapping[str, Sequence[Any]], ids: str, replacements: Mapping[int, list[int]]
) -> dict[str, list[Any]]:
    """Return columns with an entry per token, some tokens replaced by several; all columns but `ids` repeat theirs."""
    return {
        name: [
            entry
            for i, value in enumerate(values)
            for entry in (
                [value] if i not in replacements else replacements[i] if name == ids else [value] * len(replacements[i])
            )
        ]
        for name, values in fields.items()
    }


def _trim(text: str, span: Span) -> Span:
    begin, end = span
    words = text[begin:end]
    return begin + len(words) - len(words.lstrip()), end - len(words) + len(words.rstrip())


def _disjoint(spans: Iterable[Span]) -> list[Span]:
    """Return spans in order, without those that overlap an earlier one."""
    kept: list[Span] = []
    for begin, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if begin < end and (not kept or begin >= kept[-1][1]):
            kept.append((begin, end))
    return kept


def _guard(processor: Any, prompts: Sequence[Prompt]) -> tuple[Any, list[str]]:
    """Return the rendered turns of prompts, and a processor that reads their texts as plain text."""
    given = [text for prompt in prompts for text in (prompt.text, prompt.response or "")]
    texts, strings = replace_control_strings(processor.tokenizer, given, _placeholders(processor))
    turns = [
        _render_turn(processor, replace(prompt, text=text, response=None if prompt.response is None else response))
        for prompt, text, response in zip(prompts, texts[::2], texts[1::2], strict=True)
    ]
    if not strings:
        return processor, turns
    guarded = copy.copy(processor)
    guarded.tokenizer = RestoringTokenizer(processor.tokenizer, strings)
    return guarded, turns


def _placeholders(processor: Any) -> set[str]:
    """Return the strings that a processor reads or writes around an image; they need not be added tokens."""
    names = {name for name in vars(processor) if name.endswith("_token")} | {"image_token", "video_token"}
    values = (getattr(processor, name, None) for name in names)
    return {value for value in values if isinstance(value, str) and value.strip()}


def _render_turn(processor: Any, prompt: Prompt) -> str:
    asking: Asking | None = getattr(processor, "carevl_asking", None)
    content = [{"type": "image"}, {"type": "text", "text": prompt.text}]
    image_first = prompt.image_first and (asking is None or asking.image_first)
    messages = [{"role": "user", "content": content if image_first else content[::-1]}]
    if asking is not None and asking.system is not None:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": asking.system}]})
    if prompt.response is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": prompt.response}]})
    options = {} if asking is None else asking.template_kwargs
    written: str = processor.apply_chat_template(
        messages, **options, tokenize=False, add_generation_prompt=prompt.response is None
    )
    return written


def _special_tokens(tokenizer: Any, turns: Sequence[str]) -> dict[str, bool]:
    """Return the argument that keeps the tokenizer from adding a BOS to turns that the template began with one."""
    begun = bool(tokenizer.bos_token) and turns[0].startswith(tokenizer.bos_token)
    return {"add_special_tokens": False} if begun else {}

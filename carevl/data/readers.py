"""One function per public preference format: a row in, its preference out, RowError where the row does not fit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from carevl.data.rows import Preference, Row, RowError, facts, items_of, kind_of, number, struct, text
from carevl.data.turns import ask, last_answer, read_turns, split_answer, untagged

_ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
_FIRST = (1.0, 0.0)
_SECOND = (0.0, 1.0)


def _image(row: Row, *names: str) -> object:
    """The row's one image reference, from the first of these columns that is filled."""
    found = next((row[name] for name in names if row.get(name) is not None), None)
    if not isinstance(found, list | tuple):
        return found
    if len(found) > 1:
        raise RowError("image_several", f"the row has {len(found)} images; an item has one")
    return found[0] if found else None


def _pair(row: Row, question: str, image: object, *extra: str) -> Preference:
    responses = (last_answer(row.get("chosen"), "chosen"), last_answer(row.get("rejected"), "rejected"))
    return Preference(question, responses, _FIRST, image, facts(row, *extra))


def rlaif_v(row: Row) -> Preference:
    """RLAIF-V: `chosen` and `rejected` beside the question."""
    extra = ("ds_name", "origin_dataset", "origin_split", "idx", "image_path")
    return _pair(row, text(row.get("question"), "question", "question"), _image(row, "image"), *extra)


def spa_vl(row: Row) -> Preference:
    """SPA-VL, and any table with its four columns."""
    question = text(row.get("question"), "question", "question")
    return _pair(row, question, _image(row, "image"), "image_name", "id")


def rlhf_v(row: Row) -> Preference:
    """RLHF-V: question, chosen and rejected are a JSON object inside the text column `text`."""
    packed = row.get("text")
    if isinstance(packed, str):
        try:
            packed = json.loads(packed)
        except (ValueError, RecursionError) as failure:
            raise RowError("format", f"`text` should be a JSON object with the triple: {failure}") from None
    triple = struct(packed, "text")
    extra = facts(row, "ds_name", "origin_dataset", "origin_split", "idx", "image_path")
    question = text(triple.get("question"), "text.question", "question")
    pair = _pair(triple, question, _image(row, "image"))
    return Preference(pair.question, pair.responses, pair.preference, pair.image, extra)


def mm_rlhf(row: Row) -> Preference:
    """MM-RLHF: a prompt in text; rows about a video have no image and are errors."""
    image = _image(row, "image", "images")
    if image is None and row.get("video") is not None:
        raise RowError("image_missing", "the row is about a video; an item has one image")
    question = untagged(text(row.get("prompt"), "prompt", "question"))
    return _pair(row, question, image, "id", "chosen_reason", "rejected_reason")


def povid(row: Row) -> Preference:
    """POVID: two conversations that differ in their last turn."""
    asked, chosen = split_answer(read_turns(row.get("conversations"), "conversations"), "conversations")
    rejected = last_answer(row.get("rejected_conversations"), "rejected_conversations")
    return Preference(ask(asked), (chosen, rejected), _FIRST, _image(row, "image"), facts(row, "id"))


def llava_rlhf(row: Row) -> Preference:
    """LLaVA-RLHF human preference: two outputs, of which `preference` (1 or 2) names the better one.

    `captions`, where the source has a captions file, goes into `extra`.
    """
    turns = read_turns(row.get("conversations"), "conversations")
    asked = turns[:-1] if turns[-1].role == "assistant" else turns
    responses = (last_answer(row.get("output_1"), "output_1"), last_answer(row.get("output_2"), "output_2"))
    better = number(row.get("preference"), "preference")
    if better not in (1, 2):
        raise RowError("preference", f"`preference` should be 1 or 2, found {better:g}")
    extra = facts(row, "id", "captions")
    return Preference(ask(asked), responses, _FIRST if better == 1 else _SECOND, _image(row, "image"), extra)


def vlfeedback(row: Row) -> Preference:
    """VLFeedback: n responses, each with a rating per aspect; the preference is the mean over the aspects.

    `completions` is a list of structs, or a struct of lists as `datasets` stores it. Responses without any annotation
    give no preference; a rating that is not a number is an error.
    """
    completions = _completions(row.get("completions"))
    responses = tuple(text(one.get("response"), f"completions[{n}].response") for n, one in enumerate(completions))
    ratings = None
    if any(one.get("annotations") is not None for one in completions):
        ratings = tuple(_mean_rating(one, f"completions[{n}]") for n, one in enumerate(completions))
    question = text(row.get("prompt"), "prompt", "question")
    return Preference(question, responses, ratings, _image(row, "image", "img_path"), facts(row, "id", "models"))


def _completions(value: object) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, Mapping):
        return [struct(one, f"completions[{n}]") for n, one in enumerate(items_of(value, "completions"))]
    responses = items_of(value.get("response"), "completions.response")
    annotations = value.get("annotations")
    if annotations is None:
        return [{"response": response} for response in responses]
    rated = items_of(annotations, "completions.annotations")
    if len(rated) != len(responses):
        raise RowError("preference", f"{len(rated)} annotations of {len(responses)} responses")
    return [{"response": one, "annotations": two} for one, two in zip(responses, rated, strict=True)]


def _mean_rating(completion: Mapping[str, Any], where: str) -> float:
    annotations = completion.get("annotations")
    if not isinstance(annotations, Mapping):
        raise RowError("preference", f"`{where}.annotations` should be a struct, found {kind_of(annotations)}")
    rated = [(aspect, annotations.get(aspect)) for aspect in _ASPECTS]
    values = [number(a.get("Rating") if isinstance(a, Mapping) else None, f"{where}.{aspect}") for aspect, a in rated]
    return sum(values) / len(values)


def trl(row: Row) -> Preference:
    """TRL vision preference: message lists; without `prompt`, it is what stands before the last turn of `chosen`."""
    images = _image(row, "images", "image")
    if row.get("prompt") is None:
        asked, _ = split_answer(read_turns(row.get("chosen"), "chosen"), "chosen")
        question = ask(asked)
    elif isinstance(row["prompt"], str):
        question = untagged(text(row["prompt"], "prompt"))
    else:
        question = ask(read_turns(row["prompt"], "prompt"))
    return _pair(row, question, images, "id")


def llamafactory_sharegpt(row: Row) -> Preference:
    """LLaMA-Factory ranking in sharegpt form: a conversation and the two turns that could follow it."""
    question = ask(read_turns(row.get("conversations"), "conversations"))
    return _pair(row, question, _image(row, "images", "image"), "id")


def llamafactory_alpaca(row: Row) -> Preference:
    """LLaMA-Factory ranking in alpaca form: `instruction` and an optional `input` make the question."""
    instruction = text(row.get("instruction"), "instruction", "question")
    asked = [instruction, text(row["input"], "input")] if row.get("input") else [instruction]
    return _pair(row, untagged("\n".join(asked)), _image(row, "images", "image"), "id")


def ms_swift(row: Row) -> Preference:
    """ms-swift: `messages` ends with the chosen response; the rejected one is text or a conversation of its own."""
    asked, chosen = split_answer(read_turns(row.get("messages"), "messages"), "messages")
    name = "rejected_messages" if row.get("rejected_response") is None else "rejected_response"
    image = _image(row, "images", "image")
    return Preference(ask(asked), (chosen, last_answer(row.get(name), name)), _FIRST, image, facts(row, "id"))


def items(row: Row) -> Preference:
    """CAREVL's own: `image`, `question`, `responses` and, if known, `source_preference` with one number each."""
    responses = items_of(row.get("responses"), "responses")
    texts = tuple(text(response, f"responses[{n}]") for n, response in enumerate(responses))
    preference = None
    if row.get("source_preference") is not None:
        values = items_of(row["source_preference"], "source_preference")
        preference = tuple(number(value, f"source_preference[{n}]") for n, value in enumerate(values))
    question = text(row.get("question"), "question", "question")
    return Preference(question, texts, preference, _image(row, "image"), facts(row, "id"))

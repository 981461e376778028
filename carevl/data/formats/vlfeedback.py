"""VLFeedback: n responses, each with a rating per aspect; the preference is the mean over the aspects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from carevl.data.formats.base import ANY, Format, read_preference, user_turn
from carevl.data.rows import Preference, Row, RowError, items_of, kind_of, number, struct, text

_ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")


def read(row: Row) -> Preference:
    """Read a row of VLFeedback.

    `completions` is a list of structs, or a struct of lists as `datasets` stores it. Responses without any annotation
    give no preference; a rating that is not a number is an error.
    """
    completions = _completions(row.get("completions"))
    responses = tuple(
        text(completion.get("response"), f"completions[{n}].response") for n, completion in enumerate(completions)
    )
    ratings = None
    if any(completion.get("annotations") is not None for completion in completions):
        ratings = tuple(_mean_rating(completion, f"completions[{n}]") for n, completion in enumerate(completions))
    turns = user_turn(row, "prompt")
    return read_preference(row, turns, responses, ratings, "id", "models", images=["image", "img_path"])


def _completions(value: object) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, Mapping):
        return [struct(entry, f"completions[{n}]") for n, entry in enumerate(items_of(value, "completions"))]
    responses = items_of(value.get("response"), "completions.response")
    annotations = value.get("annotations")
    if annotations is None:
        return [{"response": response} for response in responses]
    rated = items_of(annotations, "completions.annotations")
    if len(rated) != len(responses):
        raise RowError("preference", f"{len(rated)} annotations of {len(responses)} responses")
    return [
        {"response": response, "annotations": annotation} for response, annotation in zip(responses, rated, strict=True)
    ]


def _mean_rating(completion: Mapping[str, Any], field: str) -> float:
    annotations = completion.get("annotations")
    if not isinstance(annotations, Mapping):
        raise RowError("preference", f"`{field}.annotations` should be a struct, found {kind_of(annotations)}")
    rated = [(aspect, annotations.get(aspect)) for aspect in _ASPECTS]
    values = [number(a.get("Rating") if isinstance(a, Mapping) else None, f"{field}.{aspect}") for aspect, a in rated]
    return sum(values) / len(values)


def _example_completion(response: str, rating: str) -> dict[str, Any]:
    return {"annotations": {aspect: {"Rating": rating} for aspect in _ASPECTS}, "response": response}


FORMAT = Format(
    name="vlfeedback",
    columns={"prompt": "text", "completions": "list|struct", "image|img_path": ANY},
    read=read,
    example={
        "prompt": "What is it?",
        "completions": [_example_completion("A cat.", "5"), _example_completion("A dog.", "1")],
        "img_path": "a.png",
    },
)

"""The pictures that a question shows, or why no judge can be shown it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from carevl.benchmarks.questions import Question

if TYPE_CHECKING:
    from PIL.Image import Image


def pictures_of(question: Question, pictures: Mapping[str, Image | str], max_images: int) -> tuple[Image, ...] | str:
    """Return the pictures of a question in their order, or the reason why it cannot be asked.

    Args:
        pictures: image name to the picture, or to why there is none.
        max_images: of a prompt.
    """
    shown = []
    for image in question.images:
        picture = pictures[image.name]
        if isinstance(picture, str):
            return picture
        shown.append(picture)
    return refuse_number(question, max_images) or tuple(shown)


def refuse_number(question: Question, max_images: int) -> str | None:
    """Return why a question has too many images to be asked; None: it has not."""
    number = len(question.images)
    if number <= max_images:
        return None
    return (
        f"its prompt has {number} images, and max_images of the judge is {max_images}; raise that (judge.max_images in "
        f"settings, --set max_images={number} of carevl evaluate)"
    )


def can_be_shown(question: Question, max_images: int) -> bool:
    """Return whether a judge can be shown a question, as far as that is known before its images are read."""
    return not any(image.error for image in question.images) and refuse_number(question, max_images) is None

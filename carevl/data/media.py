"""Images and videos of a row, which formats share: in columns, or among the parts of turns."""

from __future__ import annotations

import re
from collections.abc import Sequence

from carevl.data.rows import Row, RowError, VideoReference, references_of
from carevl.data.turns import IMAGE_TAG, ONE_FOR_BOTH, VIDEO_TAG, Turn, place_images, references, tags_of
from carevl.judging.turns import Turn as PlacedTurn

_REJECTED_IMAGES = ("rejected_images", "rejected_image", "image_rejected")
_VIDEOS, _REJECTED_VIDEOS = ("videos", "video"), ("rejected_videos", "rejected_video")
_SOUNDS = ("audio", "audios")
looks_like_images = re.compile("image|img|pict|photo|pixel|screenshot|frame", re.IGNORECASE).search
"""Of a column's name."""


def read_media(
    row: Row, names: Sequence[str], turns: Sequence[Turn], required: bool
) -> tuple[object, tuple[PlacedTurn, ...]]:
    """Return images and videos of a row as `Preference.images` has them, and its turns with their places.

    Arguments and errors are those of `read_preference`.
    """
    videos = _videos_of(row, turns)
    found = _images_of(row, names, turns, required and not videos)
    images = [] if found is None and videos else references_of(found)
    tags = tags_of(turns)
    if videos and not images and VIDEO_TAG not in tags:  # LLaVA-Video and others write <image> for a video
        return videos, place_images(turns, len(videos))
    n_images = len([image for image in images if image is not None])
    dialogue = place_images(turns, n_images, None if videos is None else len(videos))
    if not videos:
        return found, dialogue
    waiting = {IMAGE_TAG: iter(images), VIDEO_TAG: iter(videos)}
    return [next(waiting[tag]) for tag in tags] or [*images, *videos], dialogue


def _videos_of(row: Row, turns: Sequence[Turn]) -> list[VideoReference] | None:
    """Return the videos of a row, None where no column and no part of a turn is for them."""
    for name in _SOUNDS:
        if row.get(name):
            raise RowError("media", f"the row has `{name}`, and an item holds no sound; leave it out")
    present = [name for name in _VIDEOS if name in row]
    column = next((row[name] for name in present if row[name] not in (None, "", [])), None)
    videos = [VideoReference(video) for video in references_of(column)] if column is not None else []
    videos = videos or [part for part in references(turns) if isinstance(part, VideoReference)]
    rejected = next((row[name] for name in _REJECTED_VIDEOS if row.get(name)), None)
    if rejected is not None and [VideoReference(video) for video in references_of(rejected)] != videos:
        raise RowError("image_differs", f"chosen and rejected response are about different videos; {ONE_FOR_BOTH}")
    return videos if videos or present else None


def _images_of(row: Row, names: Sequence[str], turns: Sequence[Turn], required: bool) -> object:
    present = [name for name in names if name in row]
    found: object = next((row[name] for name in present if row[name] not in (None, "")), None)
    if found is None or found == []:
        parts = [part for part in references(turns) if not isinstance(part, VideoReference)]
        found = parts or found
    rejected = next((row[name] for name in _REJECTED_IMAGES if row.get(name)), None)
    if rejected is not None and references_of(rejected) != references_of(found):
        raise RowError("image_differs", f"chosen and rejected response are about different images; {ONE_FOR_BOTH}")
    if found is not None or present or required:
        return found
    if unread := [name for name, value in row.items() if value not in (None, "", []) and looks_like_images(name)]:
        raise RowError("image_missing", f"the row has no `{names[0]}`; rename `{unread[0]}` to that if it holds images")
    return []

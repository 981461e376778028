"""Which images of an item are frames of one video, and where one caption stands for all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

from carevl.judging.turns import Turn, turns_of


def videos_of(item: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the numbers of the first frame of each video of a row of `items`, and of the image behind its last one."""
    for source in item["sources"]:
        videos = json.loads(source["extra"]).get("videos") if '"videos"' in (source["extra"] or "") else None
        if isinstance(videos, list) and all(isinstance(video, Mapping) and "first" in video for video in videos):
            return [(video["first"], video["first"] + len(video["seconds"])) for video in videos]
    return []


def frames_id(images: Sequence[str]) -> str:
    """Return what a caption of several images has in place of their ids: the SHA-256 of these."""
    return hashlib.sha256(json.dumps(list(images)).encode()).hexdigest()


def captioned_turns(item: Mapping[str, Any], captions: Container[str]) -> tuple[tuple[Turn, ...], list[str]]:
    """Return an item's turns with a place for everything that has a caption of its own, and the ids of these captions.

    A video has one place where there is a caption of all its frames, else each frame has its own.

    Args:
        captions: ids that there are captions of.
    """
    images: list[str] = item["images"]
    turns = turns_of(item)
    ids, stays = list(images), [True] * len(images)
    for begin, end in videos_of(item):
        whole = frames_id(images[begin:end])
        if whole in captions:
            ids[begin] = whole
            stays[begin + 1 : end] = [False] * (end - begin - 1)
    if all(stays) and ids == images:
        return turns, ids
    waiting = iter(stays)
    kept = [replace(turn, places=tuple(place for place in turn.places if next(waiting))) for turn in turns]
    return tuple(kept), [name for name, stay in zip(ids, stays, strict=True) if stay]

"""Source rows into rows of the `images` and `items` tables, and the merging of rows that are the same item.

`Intake` works row by row, in any number of threads; `merge_items` and `merge_images` then need all rows of an item (of
an image) together: in one process, or bucket by bucket of the first image's id.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import posixpath
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow.fs as pafs

from carevl.data.files import locate
from carevl.data.images import ImageFacts, ImageLimits, examine, identify, image_id
from carevl.data.perceptual_hash import ImageSignature, signature_of
from carevl.data.reading import Source, SourceRow
from carevl.data.references import ImageReader, VideoReader
from carevl.data.rows import Preference, RowError, VideoReference
from carevl.data.urls import UrlFetcher
from carevl.data.videos import FrameReader, Frames
from carevl.judging.turns import Turn
from carevl.settings.data import Video

_REMEMBERED = 1024


class Intake:
    """Turns the rows of one source into table rows.

    Args:
        filesystem: where the source is; found from its path when None.
        limits: caps on images, and on those of an item together.
        fetcher: for http(s) references; None refuses them.
        frames: decodes videos; one with the settings' defaults when None.
        signatures: whether signatures of the images are needed.
    """

    def __init__(
        self,
        source: Source,
        filesystem: pafs.FileSystem | None = None,
        limits: ImageLimits | None = None,
        fetcher: UrlFetcher | None = None,
        frames: FrameReader | None = None,
        signatures: bool = False,
    ) -> None:
        self._limits = limits or ImageLimits()
        self._signatures = signatures
        source_filesystem, base = locate(source.path, filesystem)
        if source.image_root is not None:
            source_filesystem, base = locate(source.image_root, filesystem)
        elif source_filesystem.get_file_info(base).type != pafs.FileType.Directory:
            base = posixpath.dirname(base) or "."
        self._images = ImageReader(source_filesystem, base, self._limits, fetcher)
        self._frames = frames or FrameReader(Video())
        self._videos = VideoReader(source_filesystem, base, self._frames.settings.max_bytes, fetcher)
        self._examined: OrderedDict[str, tuple[ImageFacts, ImageSignature | None] | RowError] = OrderedDict()

    def __call__(self, row: SourceRow) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return the rows of `images`, as far as there are bytes, and of `items`; each may be an error row."""
        return self.with_signatures(row)[:2]

    def with_signatures(self, row: SourceRow) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, ImageSignature]]:
        """Do as a call, and return the signatures of whole images by their image_id too, where they are needed."""
        if row.preference is None:
            return [], _error_item(row, row.error or RowError("row", "the row is empty")), {}
        preference = row.preference
        if row.source.text_only:
            preference = preference.without_missing_image()
        images: dict[str, dict[str, Any]] = {}
        signatures: dict[str, ImageSignature] = {}
        shown: list[str] = []
        failure: RowError | None = None
        try:
            self._limits.check_count(len(preference.references))
            files, frames = self._read(preference.references, row.directory)
            for data in itertools.chain.from_iterable(files):
                shown.append(image_id(data))
                examined = self._examine_once(shown[-1], data)
                if isinstance(examined, RowError):
                    images[shown[-1]] = _image(shown[-1], None, None, examined)
                    failure = failure or examined
                    continue
                facts, signature = examined
                images[shown[-1]] = _image(shown[-1], data, facts, None)
                if signature is not None:
                    signatures[shown[-1]] = signature
            if failure is not None:
                raise failure
            self._limits.check_pixels(sum(images[name]["width"] * images[name]["height"] for name in shown))
            item = _item(row, _with_frames(preference, frames), shown)
        except RowError as problem:
            return list(images.values()), _error_item(row, problem, shown), {}
        return list(images.values()), item, signatures

    def _read(self, references: Sequence[object], near: str) -> tuple[list[Sequence[bytes]], dict[int, Frames]]:
        """Return the image files that each reference stands for, and the frames of those to videos, by their place."""
        files: list[Sequence[bytes]] = []
        frames: dict[int, Frames] = {}
        for place, reference in enumerate(references):
            if isinstance(reference, VideoReference):
                frames[place] = self._frames.read(self._videos.read(reference.reference, near))
                files.append(frames[place].files)
            else:
                files.append([self._images.read(reference, near)])
        self._limits.check_count(sum(map(len, files)), sum(len(video.files) for video in frames.values()))
        return files, frames

    def _examine_once(self, key: str, data: bytes) -> tuple[ImageFacts, ImageSignature | None] | RowError:
        """Decode an image once: rows about it tend to follow each other."""
        examined = self._examined.get(key)
        if examined is None:
            if len(self._examined) >= _REMEMBERED:
                self._examined.popitem(last=False)
            try:
                examined = self._examine(data)
            except RowError as failure:
                examined = failure
            self._examined[key] = examined
        return examined

    def _examine(self, data: bytes) -> tuple[ImageFacts, ImageSignature | None]:
        if not self._signatures:
            return identify(data, self._limits), None
        facts, pixels = examine(data, self._limits)
        return facts, signature_of(pixels)


def _with_frames(preference: Preference, frames: Mapping[int, Frames]) -> Preference:
    """Return a preference with a place for every frame of its videos, which are listed in `extra`.

    Each has the hash of its file, the number of its first frame among the item's images, and when frames are shown.

    Args:
        frames: of the references that are to videos, by their place among all.
    """
    if not frames:
        return preference
    counts = [len(frames[n].files) if n in frames else 1 for n in range(len(preference.references))]
    waiting = iter(counts)

    def repeat(places: Sequence[int]) -> tuple[int, ...]:
        return tuple(itertools.chain.from_iterable([place] * next(waiting, 1) for place in places))

    turns = tuple(replace(turn, places=repeat(turn.places)) for turn in preference.turns)
    places = repeat((0,) * len(counts) if preference.places is None else preference.places)
    begins = list(itertools.accumulate(counts, initial=0))
    videos = [
        {"sha256": video.video_id, "first": begins[n], "seconds": list(video.seconds)} for n, video in frames.items()
    ]
    return replace(preference, turns=turns, places=places, extra=preference.extra | {"videos": videos})


def item_id(
    images: Sequence[str], places: Sequence[int], turns: Sequence[Turn], question: str, responses: Sequence[str]
) -> str:
    """Return the SHA-256 of all of an item, in hexadecimal: image_ids, places, turns, question, responses as stored.

    An item of one image that stands before the question, without turns, is named by image, question and responses.
    """
    if len(images) == 1 and tuple(places) == (0,) and not turns:
        return _sha256(json.dumps([images[0], question, list(responses)]))
    before = [[turn.role, turn.text, list(turn.places)] for turn in turns]
    return _sha256(json.dumps([list(images), list(places), before, question, list(responses)]))


def order_responses(responses: Sequence[str]) -> list[int]:
    """Return the places of responses in the order in which an item has them: that of the hashes of their texts."""
    return sorted(range(len(responses)), key=lambda n: (_sha256(responses[n]), n))


def error_id(source: str, locator: str) -> str:
    """Return the item_id of a row that could not be read: SHA-256 of its source and locator, in hexadecimal."""
    return _sha256(json.dumps([source, locator]))


def merge_items(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per item_id, in order of item_id, each with the sources of all its rows.

    The result does not depend on the order of the rows. Where two sources prefer opposite responses of some pair,
    `conflict` is true and the disputed column (`source_preference`, `gold`) is null: neither is believed, both are kept
    in `sources`. Otherwise the column holds the first known preference.
    """
    by_id: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_id.setdefault(row["item_id"], []).append(row)
    return [_merged(by_id[key]) for key in sorted(by_id)]


def merge_images(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per image_id, in order of image_id."""
    by_id = {row["image_id"]: row for row in rows}
    return [by_id[key] for key in sorted(by_id)]


def _merged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    rows = sorted(rows, key=_rank)
    sources = sorted((source for row in rows for source in row["sources"]), key=_rank_source)
    preference, disputed = _agreed([source["preference"] for source in sources])
    gold, _ = _agreed([row["gold"] for row in rows])
    first = next((row for row in rows if row["gold"] is not None), rows[0])
    return first | {"source_preference": preference, "gold": gold, "conflict": disputed, "sources": sources}


def _rank(row: dict[str, Any]) -> tuple[str, ...]:
    return _rank_source(row["sources"][0])


def _rank_source(source: Mapping[str, Any]) -> tuple[str, ...]:
    return source["source"], source["locator"], json.dumps(source["preference"])


def _agreed(preferences: Sequence[Sequence[float] | None]) -> tuple[Sequence[float] | None, bool]:
    """Return the first known preference, or None and True when two of them order some pair of responses oppositely."""
    stated = [preference for preference in preferences if preference is not None]
    if any(_opposed(first, second) for first, second in itertools.combinations(stated, 2)):
        return None, True
    return (stated[0] if stated else None), False


def _opposed(first: Sequence[float], second: Sequence[float]) -> bool:
    pairs = itertools.combinations(range(len(first)), 2)
    return any((first[i] - first[j]) * (second[i] - second[j]) < 0 for i, j in pairs)


def _item(row: SourceRow, preference: Preference, images: Sequence[str]) -> dict[str, Any]:
    """Return the row of `items`.

    Responses are ordered by the hash of their text: their place says nothing about the preference, and a pair that two
    sources hold in opposite orders is one item.

    Raises:
        RowError: the texts have another number of places than there are images.
    """
    places = (0,) * len(images) if preference.places is None else preference.places
    n_places = len(places) + sum(len(turn.places) for turn in preference.turns)
    if n_places != len(images):
        raise RowError("image_places", f"the texts have {n_places} places for images, and the row has {len(images)}")
    order = order_responses(preference.responses)
    responses = [preference.responses[n] for n in order]
    ratings = [preference.preference[n] for n in order] if preference.preference else None
    return {
        "item_id": item_id(images, places, preference.turns, preference.question, responses),
        "images": list(images),
        "places": list(places),
        "turns": [{"role": turn.role, "text": turn.text, "places": list(turn.places)} for turn in preference.turns],
        "question": preference.question,
        "responses": responses,
        "source_preference": ratings,
        "gold": ratings if row.source.labels else None,
        "conflict": False,
        "sources": [_source(row, ratings, json.dumps(preference.extra))],
        "split": row.source.split,
        "group": None,
        "error": None,
    }


def _image(key: str, data: bytes | None, facts: ImageFacts | None, failure: RowError | None) -> dict[str, Any]:
    return {
        "image_id": key,
        "bytes": data,
        "format": facts.format if facts else None,
        "width": facts.width if facts else None,
        "height": facts.height if facts else None,
        "error": failure.as_struct() if failure else None,
    }


def _error_item(row: SourceRow, failure: RowError, images: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "item_id": error_id(row.source.name, row.locator),
        "images": list(images),
        "places": [],
        "turns": [],
        "question": None,
        "responses": None,
        "source_preference": None,
        "gold": None,
        "conflict": False,
        "sources": [_source(row, None, None)],
        "split": row.source.split,
        "group": None,
        "error": failure.as_struct(),
    }


def _source(row: SourceRow, preference: list[float] | None, extra: str | None) -> dict[str, Any]:
    return {
        "source": row.source.name,
        "format": row.format,
        "locator": row.locator,
        "preference": preference,
        "extra": extra,
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

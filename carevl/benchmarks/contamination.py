"""Finds rows that preference data share with the benchmarks that the judge will be measured on.

| shared | what happens |
|---|---|
| equal pixels, whatever the file | the row is set aside as an error of the kind `contaminated` |
| nearly the same pixels (`carevl.data.pixel_comparison`) and the same question | the same |
| the same question about text alone | the same |
| question and a response, but not the image | counted: short answers repeat |

Questions are compared without image tags, capitals, runs of white space and compatibility forms (NFKC).
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from carevl.benchmarks import rows as benchmark_rows
from carevl.data.images import ImageLimits, decode_rgb, examine
from carevl.data.perceptual_hash import ImageSignature, may_be_near_duplicates, signature_of
from carevl.data.pixel_comparison import View, show_the_same, view_of
from carevl.data.rows import RowError
from carevl.data.turns import IMAGE_TAG
from carevl.store.schemas import CONTAMINATED, row_error

Kind = Literal["equal_pixels", "near_duplicate", "equal_question"]
_SHARED: dict[Kind, str] = {
    "equal_pixels": "the pixels of its image",
    "near_duplicate": "its question and nearly its image",
    "equal_question": "its question about text alone",
}
_MOST_COMPARED = 4
"""Images of benchmarks that the pixels of one row are compared with, the most alike by their hashes."""


@dataclass(frozen=True)
class _BenchmarkRow:
    """A benchmark's row and an image of it."""

    benchmark: str
    key: str
    signature: ImageSignature
    pixels: bytes
    image: benchmark_rows.Image


class Contamination:
    """Screens rows against benchmarks, and keeps an account.

    Args:
        benchmarks: name to its rows with their images, as `carevl.benchmarks` loads them.
        limits: caps on images.
    """

    def __init__(self, benchmarks: Mapping[str, Sequence[benchmark_rows.Row]], limits: ImageLimits) -> None:
        self._limits = limits
        self._by_signature: dict[ImageSignature, list[_BenchmarkRow]] = defaultdict(list)
        self._by_question: dict[str, list[_BenchmarkRow]] = defaultdict(list)
        self._of_text: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self._responses: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._read: dict[str, Counter[str]] = {name: self._load(name, rows) for name, rows in benchmarks.items()}
        self._removed: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._same_text: Counter[tuple[str, str]] = Counter()
        self._pairs: Counter[str] = Counter()

    def screen(self, item: dict[str, Any], shown: Sequence[tuple[bytes, ImageSignature]]) -> dict[str, Any]:
        """Return the row of `items`, or its error row if it shares an image with a benchmark; count what is found.

        Args:
            item: a row without error, as `Intake` makes it.
            shown: file and signature of every image that it shows.
        """
        [source] = item["sources"]
        question = _plain(item["question"])
        leaks: dict[str, tuple[Kind, str]] = {}  # by benchmark
        for data, signature in shown:
            if signature in self._by_signature:  # equal pixels have equal signatures: few images are decoded again
                pixels = _digest(decode_rgb(data, self._limits))
                for row in self._by_signature[signature]:
                    if row.pixels == pixels:
                        leaks.setdefault(row.benchmark, ("equal_pixels", row.key))
            for row in self._nearly_same_image(question, data, signature, set(leaks)):
                leaks.setdefault(row.benchmark, ("near_duplicate", row.key))
        if not shown:
            for benchmark, key in self._of_text.get(question, ()):
                leaks.setdefault(benchmark, ("equal_question", key))
        for benchmark, (kind, _) in leaks.items():
            self._removed[benchmark, source["source"]][kind] += 1
        texts = [self._responses.get((question, _plain(response)), set()) for response in item["responses"]]
        for benchmark in set().union(*texts) - leaks.keys():
            self._same_text[benchmark, source["source"]] += 1
        if not leaks:
            return item
        benchmark, (kind, key) = next(iter(leaks.items()))
        message = f"shares {_SHARED[kind]} with row {key} of {benchmark}"
        return item | {"gold": None, "error": row_error("ingest", CONTAMINATED, message)}

    def _nearly_same_image(
        self, question: str, data: bytes, signature: ImageSignature, known: set[str]
    ) -> Iterator[_BenchmarkRow]:
        """Yield rows with this question and nearly this image, of other benchmarks than the known ones."""
        rows = (row for row in self._by_question.get(question, ()) if row.benchmark not in known)
        likely = [row for row in rows if may_be_near_duplicates(signature, row.signature)]
        likely.sort(key=lambda row: (signature.hash ^ row.signature.hash).bit_count())
        view = view_of(decode_rgb(data, self._limits)) if likely else None
        for row in likely[:_MOST_COMPARED]:
            self._pairs[row.benchmark] += 1
            if view is not None and show_the_same(self._view(row.image), view):
                yield row

    def _view(self, image: benchmark_rows.Image) -> View:
        return view_of(decode_rgb(image.read(), self._limits))

    def report(self) -> dict[str, Any]:
        """Report, by benchmark, its rows and images, and by source the rows set aside and those with the same text.

        `pairs` is how often the pixels of a row's image were compared with the benchmark's.
        """
        return {
            name: {
                **read,
                "pairs": self._pairs[name],
                "removed": {
                    source: dict(kinds) for (benchmark, source), kinds in self._removed.items() if benchmark == name
                },
                "same_text": {source: n for (benchmark, source), n in self._same_text.items() if benchmark == name},
            }
            for name, read in self._read.items()
        }

    def _load(self, name: str, rows: Sequence[benchmark_rows.Row]) -> Counter[str]:
        """Index a benchmark; return the numbers of its rows and of its images, present, missing and broken."""
        images: dict[str, tuple[ImageSignature, bytes] | None] = {}
        count = Counter(rows=len(rows), images=0, missing_images=0, broken_images=0)
        for row in rows:
            question = _plain(row.question)
            for response in row.responses:
                self._responses[question, _plain(response)].add(name)
            if not row.images:
                self._of_text[question].append((name, row.key))
            for image in row.images:
                if image.name not in images:
                    images[image.name] = self._identify(image, count)
                if seen := images[image.name]:
                    entry = _BenchmarkRow(name, row.key, *seen, image)
                    self._by_signature[entry.signature].append(entry)
                    self._by_question[question].append(entry)
        return count

    def _identify(self, image: benchmark_rows.Image, count: Counter[str]) -> tuple[ImageSignature, bytes] | None:
        if image.error or not image.present:
            count["missing_images"] += 1
            return None
        data = image.read()
        try:
            _, pixels = examine(data, self._limits)
        except RowError:
            count["broken_images"] += 1
            return None
        count["images"] += 1
        return signature_of(pixels), _digest(pixels)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text.replace(IMAGE_TAG, " ")).casefold().split())


def _digest(image: Image.Image) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()

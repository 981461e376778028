"""Stage `ingest`: source rows become the `images` and `items` tables, in parts that keep an image's rows together."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
from pyarrow.fs import FileSystem, LocalFileSystem

from carevl.benchmarks.contamination import Contamination
from carevl.benchmarks.suites import SUITES
from carevl.data.drawn import DataRoot
from carevl.data.files import locate
from carevl.data.images import ImageLimits, decode_rgb
from carevl.data.intake import Intake, merge_images, merge_items
from carevl.data.near_duplicates import NearDuplicates, confirm
from carevl.data.perceptual_hash import ImageSignature
from carevl.data.reading import Source, SourceRow, find_files, mix, read_source
from carevl.data.spill import Spill
from carevl.data.urls import UrlFetcher
from carevl.data.videos import FrameReader
from carevl.stages.base import Counts, RunContext, Stage, reads
from carevl.store.damage import hash_file
from carevl.store.ingested import Ingested
from carevl.store.parts import hash_rows
from carevl.store.run import Run, RunError
from carevl.store.schemas import IMAGES, ITEMS, failures

if TYPE_CHECKING:
    from carevl.benchmarks.rows import Row
    from carevl.settings.data import Data
    from carevl.settings.tree import Settings

VERSION = 2
_EXAMPLES = 10
_ADDED = {
    "rows",
    "max_images",
    "max_item_pixels",
    "text_only",
    "video",
    "annotations",
    "question",
    "questions",
    "questions_per_image",
}
"""Settings that version 2 did not always have."""
_MOST_THREADS = 8
"""Each holds one image's bytes and pixels at a time."""
_In = TypeVar("_In")
_Out = TypeVar("_Out")


def sources(root: DataRoot) -> list[Source]:
    """Return the settings' sources with their paths resolved."""
    resolved = []
    for name, declared in root.settings.data.named_sources:
        fields = declared.model_dump(exclude={"name", "path", "weight"})
        path = root.resolve(declared.path)
        respond = bool(root.settings.respond.models)
        resolved.append(Source(name=name, path=path, seed=root.settings.seed, respond=respond, **fields))
    return resolved


def _files(source: Source) -> Iterator[tuple[FileSystem, str]]:
    """Yield the files of a source with where they are, and of its side files the one that may have labels."""
    filesystem, files, _ = find_files(source)
    for file in files:
        yield filesystem, file
    if source.annotations is not None:
        yield locate(source.annotations)


def hash_sources(root: DataRoot) -> dict[str, str]:
    """Return the SHA-256 of the sources' files on this machine, by their paths as fingerprints have them."""
    hashes = {}
    for filesystem, file in itertools.chain.from_iterable(map(_files, sources(root))):
        if isinstance(filesystem, LocalFileSystem):
            hashes[root.relative(file)] = hash_file(Path(file))
    return hashes


def facts(settings: Settings, root: DataRoot) -> dict[str, Any]:
    """Return what the tables depend on: settings, and name, size and age of every source and benchmark file."""
    found = itertools.chain.from_iterable(map(_files, sources(root)))
    files = {root.relative(file): root.stamp(file, filesystem) for filesystem, file in found}
    files |= {root.relative(source.path): root.stamp(source.path) for source in sources(root) if source.has_list}
    tests = [[name, *stamps(root, path, images)] for name, path, images in _benchmark_paths(root)]
    data = settings.data.model_dump(exclude={"allow_url_fetch", "resize_pixels", "text_only_share", "judge_sets"})
    for group, declared in ((data, settings.data), *zip(data["sources"], settings.data.sources, strict=True)):
        fields = type(declared).model_fields
        for name in _ADDED & fields.keys():  # as by default, a table has the fingerprint of the versions before
            if getattr(declared, name) == fields[name].default:
                del group[name]
    respond = {"respond": True} if settings.respond.models else {}
    facts = {
        "version": VERSION,
        **respond,
        "seed": settings.seed,
        "items": settings.items,
        "files": files,
        "data": data,
    }
    return facts | {"benchmarks": tests}


def stamps(root: DataRoot, path: Path, images: Path | None) -> list[list[int]]:
    """Return what tells whether a benchmark's data or its directory of images were changed."""
    return [root.stamp(str(place)) for place in (path, images) if place is not None]


def run_ingest(
    settings: Settings,
    run: Run,
    directory: Path,
    on_progress: Callable[[int, int], None],
    log: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Read every source and write the tables' parts.

    Args:
        on_progress: called now and then with (rows read, rows with an error).
        log: called with a line about every format, and about items that were set aside.

    Returns:
        rows_in (source rows), rows_out (items), images, errors (items), contaminated (items), `contents` (a hash of
        the tables), `replaced` (source rows with U+FFFD), `text_only` and `questions` (rows), and the reports of
        `contamination` (`benchmarks.contamination.Contamination.report`) and of `near_duplicates`.

    Raises:
        RunError: no rows at all, or the tables do not account for every source row.
    """
    shutil.rmtree(directory, ignore_errors=True)
    root, data = DataRoot.of(settings, run), settings.data
    spill = Spill(directory / "spill", data.parts)
    near_duplicates = NearDuplicates(directory / "spill" / "signatures")
    limits = limits_of(data)
    contamination = Contamination(_benchmark_rows(root), limits)
    rows_in = errors = replaced = text_only = questions = 0
    frames = FrameReader(data.video, directory / "spill")
    for images, item, signatures in read_rows(root, log, frames):
        rows_in += 1
        errors += item["error"] is not None
        replaced += _has_replacements(item)
        text_only += item["error"] is None and not item["images"]
        questions += item["error"] is None and not item["responses"]
        seen = [(image, signatures[image["image_id"]]) for image in images if image["image_id"] in signatures]
        for image, signature in seen if data.near_duplicates != "ignore" else ():
            near_duplicates.add(image["image_id"], signature)
        if item["error"] is None:
            item = contamination.screen(item, [(image["bytes"], signature) for image, signature in seen])  # noqa: PLW2901
        spill.add(images, item)
        if rows_in % 500 == 0:
            on_progress(rows_in, errors)
    if rows_in == 0:
        raise RunError(f"no rows in {', '.join(source.path for source in data.sources)}")
    similar, same = _find_near_duplicates(near_duplicates, spill, directory / "spill" / "views", limits)
    written, contents = _write(Ingested(directory), spill, same if data.near_duplicates == "merge" else {})
    shutil.rmtree(directory / "spill")
    accounted = written.pop("accounted")
    if accounted != rows_in:
        raise RunError(f"{rows_in} source rows were read but the items account for {accounted}")
    on_progress(rows_in, written["errors"])
    if log and text_only:
        log(f"{text_only} of {rows_in} rows are about text alone: they have no image, and no caption will be read")
    if log and replaced:
        log(f"{replaced} rows have U+FFFD in their texts, in place of letters that were lost")
    if log and written["contaminated"]:
        log(
            f"{written['contaminated']} items set aside: a benchmark has their image, see contamination in the manifest"
        )
    report = {"contamination": contamination.report(), "near_duplicates": {"mode": data.near_duplicates, **similar}}
    counts = {"rows_in": rows_in, **written, "contents": contents, "replaced": replaced, "text_only": text_only}
    return counts | ({"questions": questions} if questions else {}) | report


def limits_of(data: Data) -> ImageLimits:
    """Return the caps on images of preference data."""
    return ImageLimits(
        max_image_pixels=data.max_image_pixels, max_images=data.max_images, max_item_pixels=data.max_item_pixels
    )


def _find_near_duplicates(
    near_duplicates: NearDuplicates, spill: Spill, file: Path, limits: ImageLimits
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a report on images of one picture, and image_id to the image_id whose picture it has."""
    compared, candidates = near_duplicates.candidates()
    wanted = {*candidates, *itertools.chain.from_iterable(candidates.values())}
    images = ((name, decode_rgb(image, limits)) for name, image in spill.images(wanted))
    same, pairs = confirm(candidates, images, file)
    examples = [list(pair) for pair in itertools.islice(same.items(), _EXAMPLES)]
    return {"compared": compared, "pairs": pairs, "images": len(same), "examples": examples}, same


def _has_replacements(item: dict[str, Any]) -> bool:
    """Tell whether a text has U+FFFD, which stands for letters that were lost here or before."""
    turns = (turn["text"] for turn in item["turns"])
    return any("\ufffd" in text for text in (item["question"] or "", *(item["responses"] or ()), *turns))


def _write(tables: Ingested, spill: Spill, same: Mapping[str, str]) -> tuple[Counter[str], str]:
    """Merge and write every part.

    Args:
        same: as `Spill.parts` takes it.

    Returns:
        Counts of rows_out, images, errors, contaminated, and accounted (source rows); and a hash of what was written.
    """
    contents = hashlib.sha256()
    count = Counter(rows_out=0, images=0, errors=0, contaminated=0, accounted=0)
    parts = 0
    for number, (image_rows, item_rows) in enumerate(spill.parts(same)):
        images, items = merge_images(image_rows), merge_items(item_rows)
        shown = {name for item in items if item["error"] is None for name in item["images"]}
        spill.lend(sorted(shown - {image["image_id"] for image in images}), number)
        parts = number + 1
        written = pa.Table.from_pylist(items, ITEMS)
        for table, rows in ((tables.images, pa.Table.from_pylist(images, IMAGES)), (tables.items, written)):
            table.write(number, rows)
            contents.update(hash_rows(rows))
        failed = failures(written["error"])
        count["accounted"] += sum(len(item["sources"]) for item in items)
        count["images"] += len(images)
        count["rows_out"] += len(items)
        count["errors"] += failed
        count["contaminated"] += len(items) - written["error"].null_count - failed
    for number, rows in enumerate(spill.borrowed(parts)):
        tables.borrowed.write(number, pa.Table.from_pylist(merge_images(rows), IMAGES))
    return count, contents.hexdigest()


def _benchmark_rows(root: DataRoot) -> dict[str, list[Row]]:
    """Return the rows of every benchmark to be evaluated, development and test; none without `data.decontaminate`."""
    rows: dict[str, list[Row]] = {}
    for test, path, images in _benchmark_paths(root):
        suite = SUITES[test]
        rows.setdefault(suite.name, []).extend(suite.load(path, images))
    return rows


def _benchmark_paths(root: DataRoot) -> Iterator[tuple[str, Path, Path | None]]:
    """Yield (name, data, directory of images) of the benchmarks to be evaluated."""
    settings = root.settings
    for test in settings.benchmarks if settings.data.decontaminate else ():
        for path, images in ((test.path, test.images), (test.final_path, test.final_images)):
            if path is not None:
                yield test.name, Path(root.resolve(path)), None if images is None else Path(images)


def read_rows(
    root: DataRoot, log: Callable[[str], None] | None, frames: FrameReader
) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any], dict[str, ImageSignature]]]:
    """Yield rows of `images`, the row of `items`, and signatures of whole images by image_id, where they are needed.

    Args:
        frames: decodes videos.
    """
    settings, data = root.settings, root.settings.data
    limits = limits_of(data)
    fetcher = UrlFetcher() if data.allow_url_fetch else None
    signatures = data.near_duplicates != "ignore" or bool(list(_benchmark_paths(root)))
    declared = sources(root)
    intakes = {source: Intake(source, None, limits, fetcher, frames, signatures) for source in declared}
    train = [source for source in declared if not source.labels]
    weights = [source.weight for source in data.sources if not source.labels]
    mixed: Iterator[SourceRow] = mix([read_source(source, log=log) for source in train], weights, settings.seed)
    labelled = itertools.chain.from_iterable(read_source(source, log=log) for source in declared if source.labels)
    rows = itertools.chain(itertools.islice(mixed, settings.items), labelled)
    yield from ahead(lambda row: intakes[row.source].with_signatures(row), rows)


def ahead(call: Callable[[_In], _Out], values: Iterable[_In]) -> Iterator[_Out]:
    """Yield results in the order of the values, made by a thread per core; only a few values are read ahead.

    Decoding, hashing and waiting for files and addresses leave Python's lock to others.
    """
    threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    waiting: deque[Future[_Out]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for value in values:
            waiting.append(pool.submit(call, value))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def run(context: RunContext) -> Counts:
    """Read every source.

    Raises:
        RunError: a file breaks off, or more rows than allowed cannot be used.
    """
    [table] = context.pending
    counts = read_sources(context, context.ingested.directory)
    allowed = context.settings.max_error_fraction
    lost = [message for kind, message in context.ingested.items.errors() if kind == "file"]
    if lost and allowed < 1:
        raise RunError(
            f"ingest: {lost[0]}. How many rows are lost is not known: if it cannot be mended, take the file out of the "
            "source, or set max_error_fraction = 1"
        )
    if counts["errors"] > allowed * counts["rows_out"]:
        raise RunError(
            f"ingest: {counts['errors']} of {counts['rows_out']} rows cannot be used, more than max_error_fraction = "
            f"{allowed:.1%} allows: {'; '.join(context.ingested.items.problems(3))}; mend the data, or allow more"
        )
    return {table: counts | context.run.same(context.keys[table], counts["contents"])}


def read_sources(context: RunContext, directory: Path) -> dict[str, Any]:
    """Write images and items into a directory; return their counts, and hashes of the files that were read."""

    def log(line: str) -> None:
        context.log(f"{'ingest':16s} {line}")

    def on_progress(rows: int, errors: int) -> None:
        log(f"{rows} rows read, {errors} errors")

    with ThreadPoolExecutor(1) as pool:
        hashing = pool.submit(hash_sources, DataRoot.of(context.settings, context.run))
        counts = run_ingest(context.settings, context.run, directory, on_progress, log)
        return counts | {"sources": hashing.result()}


def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    """Return what items and images depend on."""
    del table
    return facts(settings, root)


STAGE = Stage(name="ingest", inputs=reads(), fingerprint_inputs=fingerprint_inputs, run=run, errors_in="items")

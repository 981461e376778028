"""A source as the settings declare it, and its rows as a stream: located, recognised, read."""

from __future__ import annotations

import heapq
import posixpath
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import pyarrow.fs as pafs

from carevl.data.containers import Record, is_data_file, list_and_pass_over, read_records
from carevl.data.files import SourceError, locate
from carevl.data.formats import FORMATS
from carevl.data.formats.base import Format
from carevl.data.formats.detection import UnknownFormatError, detect_in
from carevl.data.formats.question import FORMAT as QUESTION
from carevl.data.question_lists import draw_questions, find_images, read_questions
from carevl.data.rows import WITHOUT_RESPONSES, ErrorKind, Preference, Row, RowError, clean
from carevl.data.side_files import SideFacts, SideFile, find_answers, read_captions
from carevl.data.video_files import VIDEO_ENDINGS

_T = TypeVar("_T")


@dataclass(frozen=True)
class Source:
    """Preference data, or questions for models to answer, in one place."""

    name: str
    path: str
    """A file or a directory, local or a URI that pyarrow knows (`s3://…`, `gs://…`), or `hf://datasets/ORG/NAME`."""
    format: str | None = None
    """Name of the format, or `package.module:NAME` of one's own; None detects it from the columns, file by file."""
    labels: bool = False
    """Whether the preference is trusted: it then fills `gold` as well."""
    split: str = "train"
    rows: int | None = None
    """Most rows that are read of it, its first; None: all."""
    image_root: str | None = None
    """Directory that relative image paths are looked up in and cannot leave; the source's own when None."""
    text_only: bool = False
    """Whether rows whose image is missing are questions about text alone."""
    captions: str | None = None
    """JSON file of image name to caption or captions (LLaVA-RLHF's image_to_caption.json)."""
    annotations: str | None = None
    """JSON file whose list `annotations` has right answers to its rows (VQA's); None: in the rows' file, if at all."""
    question: str | None = None
    """What is asked about the images of rows that have no question."""
    questions: str | None = None
    """A list of questions, one a line, about all images below `path`; or a file of rows with images from there."""
    questions_per_image: int | None = None
    """How many of a list are drawn for each image; None: all are asked."""
    seed: int = 0
    """Of that drawing."""
    respond: bool = False
    """Whether models write responses to rows that have none, which are errors otherwise."""

    @property
    def has_list(self) -> bool:
        """Whether it is a directory of images with a list of questions."""
        return self.questions is not None and not is_data_file(self.questions)

    @property
    def side_files(self) -> tuple[str, ...]:
        """Paths of files that are none of rows."""
        return tuple(file for file in (self.captions, self.annotations) if file is not None)

    def __post_init__(self) -> None:
        if self.format is not None:
            FORMATS[self.format]  # a name that is unknown is refused here, before any file is opened


@dataclass(frozen=True)
class SourceRow:
    """One row of a source: a preference, or the error that stands in its place."""

    source: Source
    locator: str
    """`FILE#ROW`, the file's path relative to the source, rows counted from 0: the same wherever the source lies.

    `FILE#ROW.PIECE` where a row is divided.
    """
    directory: str
    """Where the file lies."""
    format: str | None
    preference: Preference | None = None
    error: RowError | None = None


def find_files(
    source: Source, filesystem: pafs.FileSystem | None = None
) -> tuple[pafs.FileSystem, list[str], dict[str, int]]:
    """Return where the files are that have a source's rows, these files, and the endings of those passed over.

    The list of questions about a directory of images is the file that has their rows.

    Raises:
        SourceError: as `containers.list_files` or `question_lists.find_images`.
    """
    if source.questions is None:
        place, path = locate(source.path, filesystem)
        return place, *list_and_pass_over(place, path, [locate(file, filesystem)[1] for file in source.side_files])
    place, file = locate(source.questions, filesystem)
    if source.questions_per_image is not None and not source.has_list:
        raise SourceError(f"{file}: questions_per_image draws from a list of questions, and this is a file of rows")
    others = find_images(*locate(source.path, filesystem), [file])[1] if source.has_list else {}
    return place, [file], others


def read_source(
    source: Source, filesystem: pafs.FileSystem | None = None, log: Callable[[str], None] | None = None
) -> Iterator[SourceRow]:
    """Read every row of a source, in the order of its files' names, in the memory of a few rows.

    Args:
        filesystem: where `source.path` is; found from the path when None.
        log: called with a line about each format, at the first file that has it, and about files that are passed over.

    Raises:
        SourceError: nothing at the path, no file of a known kind, or a side file that cannot be read or belongs to
            other rows.
    """
    for _, rows in read_files(source, filesystem, log):
        yield from rows


def read_files(
    source: Source, filesystem: pafs.FileSystem | None = None, log: Callable[[str], None] | None = None
) -> Iterator[tuple[str, Iterator[SourceRow]]]:
    """Yield every file of a source with its rows, up to the most that are read of it; the rows of one before the next.

    Arguments and errors are those of `read_source`.
    """
    taken = 0

    def take(rows: Iterator[SourceRow]) -> Iterator[SourceRow]:
        nonlocal taken
        for row in rows:
            if taken == source.rows:
                return
            taken += 1
            yield row

    for file, rows in _read_files(source, filesystem, log):
        yield file, take(rows)
        if taken == source.rows:
            return


def _read_files(
    source: Source, filesystem: pafs.FileSystem | None, log: Callable[[str], None] | None
) -> Iterator[tuple[str, Iterator[SourceRow]]]:
    captions = {} if source.captions is None else read_captions(*locate(source.captions, filesystem))
    side_file = None if source.annotations is None else SideFile(*locate(source.annotations, filesystem))
    logged: set[str] = set()
    source_filesystem, files, others = find_files(source, filesystem)
    root = locate(source.path, filesystem)[1]
    if log and others:
        log(f"{source.name}: {passed_over(others)}")
    for file in files:
        fitting = _recognise(source, source_filesystem, file)
        name = fitting.name if isinstance(fitting, Format) else "no known format"
        if log and fitting is not None and name not in logged:
            logged.add(name)
            log(f"{source.name}: {name} in {clean(file)}")
        if source.has_list:
            yield file, _ask_of_images(source, filesystem)
            continue
        is_apart = file == root or source.questions is not None
        below = clean(posixpath.basename(file) if is_apart else posixpath.relpath(file, root))
        place = SourceRow(source, below, posixpath.dirname(file), None)
        answers = None
        if isinstance(fitting, Format):
            answers = find_answers(source_filesystem, file, fitting, side_file)
        side = SideFacts(captions, answers)
        yield file, _read_file(place, source_filesystem, file, fitting, side)


def _ask_of_images(source: Source, filesystem: pafs.FileSystem | None) -> Iterator[SourceRow]:
    """Yield a row for every image below the source's path and every question that it is asked."""
    assert source.questions is not None
    questions = read_questions(*locate(source.questions, filesystem))
    place, directory = locate(source.path, filesystem)
    for image in find_images(place, directory, [locate(source.questions, filesystem)[1]])[0]:
        name = clean(image)
        for number, question in draw_questions(questions, source.questions_per_image, source.seed, name).items():
            row = _complete({"file_name": image, "question": question}, source)
            yield _read_piece(SourceRow(source, f"{name}#{number}", directory, QUESTION.name), row, QUESTION)


def _read_file(
    place: SourceRow,
    filesystem: pafs.FileSystem,
    file: str,
    fitting: Format | UnknownFormatError | None,
    side: SideFacts,
) -> Iterator[SourceRow]:
    for record in read_records(filesystem, file):
        yield from _read(replace(place, locator=f"{place.locator}#{record.number}"), record, fitting, side)
    if side.answers is not None:
        side.answers.check()


def passed_over(endings: Mapping[str, int]) -> str:
    """Say in a line which files are no data by their endings.

    Args:
        endings: as from `list_and_pass_over`.
    """
    count = sum(endings.values())
    shown = ", ".join(f"{n} {ending or 'without an ending'}" for ending, n in list(endings.items())[:8])
    return f"{count} files are of no kind that is read and were passed over: {shown}"


def detect_formats(source: Source, filesystem: pafs.FileSystem | None = None) -> dict[str, str | None]:
    """Return file to the name of its format, from the first rows of each; None where there are no rows or none fits.

    Raises:
        UnknownFormatError: no file fits a format; the message shows the columns found and the closest format.
        SourceError: as `read_source`.
    """
    source_filesystem, files, _ = find_files(source, filesystem)
    formats: dict[str, str | None] = {}
    failure: UnknownFormatError | None = None
    for file in files:
        fitting = _recognise(source, source_filesystem, file)
        formats[file] = fitting.name if isinstance(fitting, Format) else None
        if isinstance(fitting, UnknownFormatError):
            failure = failure or UnknownFormatError(f"{clean(file)}: {fitting}")
    if failure and not any(formats.values()):
        raise failure
    return formats


def mix(streams: Sequence[Iterator[_T]], weights: Sequence[float], seed: int = 0) -> Iterator[_T]:
    """Draw from several streams at random until all are empty, each with a rate in proportion to its weight.

    Nothing is lost or repeated, so any prefix is a mixture with the weights asked for (while no stream runs dry).

    Raises:
        ValueError: not one positive weight per stream.
    """
    if len(weights) != len(streams) or not all(weight > 0 for weight in weights):
        raise ValueError(f"{len(streams)} streams need as many positive weights, found {list(weights)}")
    rng = random.Random(seed)
    # Each stream ticks at random times, as often as it weighs; the next tick of all decides which one is drawn from.
    clocks = [(rng.expovariate(weight), n) for n, weight in enumerate(weights)]
    heapq.heapify(clocks)
    while clocks:
        now, n = clocks[0]
        try:
            value = next(streams[n])
        except StopIteration:
            heapq.heappop(clocks)
            continue
        heapq.heapreplace(clocks, (now + rng.expovariate(weights[n]), n))
        yield value


def _recognise(source: Source, filesystem: pafs.FileSystem, file: str) -> Format | UnknownFormatError | None:
    """Return a file's format, None without a readable row, the error where none fits."""
    if source.has_list:
        return QUESTION
    if source.format is not None:
        return FORMATS[source.format]
    rows = (_complete(record.row, source) for record in read_records(filesystem, file) if record.row is not None)
    try:
        return detect_in(rows, source.respond)
    except UnknownFormatError as failure:
        return failure


def _complete(row: Row, source: Source) -> Row:
    """Return a row with what stands elsewhere: the question of its source, and the file that `file_name` names.

    In the metadata of a folder of images or videos, as `datasets` describes it, `file_name` is the image or the video.
    """
    if "file_name" in row and not row.keys() & {"image", "images", "img_path"}:
        ending = str(row["file_name"]).rpartition(".")[2].lower()
        row = {**row, "video" if ending in VIDEO_ENDINGS else "image": row["file_name"]}
    if source.question is not None and not row.keys() & {"question", "prompt"}:
        row = {**row, "question": source.question}
    return row


def _read(
    place: SourceRow, record: Record, fitting: Format | UnknownFormatError | None, side: SideFacts
) -> Iterator[SourceRow]:
    """Yield a row that says where it is from with what the record holds; several where its format divides it."""
    if record.row is not None and not isinstance(fitting, Format):
        kind: ErrorKind = "format" if fitting is None else fitting.kind
        yield replace(place, error=RowError(kind, str(fitting or "no format was recognised")))
        return
    read = replace(place, format=fitting.name if isinstance(fitting, Format) else None)
    if record.row is None or not isinstance(fitting, Format):
        yield replace(read, error=record.error)
        return
    row = side.fill(_complete(record.row, place.source))
    try:
        pieces = [row] if fitting.divide is None else list(fitting.divide(row))
    except Exception as failure:
        yield replace(read, error=_error_of(failure, fitting))
        return
    for n, piece in enumerate(pieces):
        locator = read.locator if len(pieces) == 1 else f"{read.locator}.{n}"
        yield _read_piece(replace(read, locator=locator), piece, fitting)


def _read_piece(place: SourceRow, row: Row, fitting: Format) -> SourceRow:
    try:
        preference = fitting.read(row)
        if not preference.responses and not place.source.respond:
            raise RowError("responses", f"no responses; {WITHOUT_RESPONSES}")
        return replace(place, preference=preference)
    except Exception as failure:
        return replace(place, error=_error_of(failure, fitting))


def _error_of(failure: Exception, fitting: Format) -> RowError:
    """Return the error of a row: a reader of one's own, or what none has met before, costs its row and no run."""
    if isinstance(failure, RowError):
        return failure
    return RowError("format", f"the reader of {fitting.name} fails here: {type(failure).__name__}: {failure}")

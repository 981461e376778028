"""A directory of images with a list of questions: every image is asked every question, or some that are drawn."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Sequence

import pyarrow.fs as pafs

from carevl.data.containers import is_hidden
from carevl.data.files import SourceError, files_below
from carevl.data.images import is_image
from carevl.data.json_rows import raw_lines
from carevl.data.rows import RowError, clean
from carevl.data.tar_rows import IMAGE_ENDINGS
from carevl.data.video_files import VIDEO_ENDINGS, video_kind
from carevl.stats.draws import hash_uniform

_START_BYTES = 32
"""Which tell an image or a video from other files."""


def read_questions(filesystem: pafs.FileSystem, file: str) -> dict[int, str]:
    """Return the lines of a list of questions by their numbers, from 0, without blank and repeated ones.

    Raises:
        SourceError: it cannot be read, is not UTF-8, or has no question.
    """
    numbers: dict[str, int] = {}
    try:
        with filesystem.open_input_stream(file) as handle:
            for number, line in enumerate(raw_lines(handle)):
                if isinstance(line, RowError):
                    raise SourceError(f"{file}: line {number + 1}: {line.message}")
                question = clean(line.decode("utf-8-sig").strip())
                if question:
                    numbers.setdefault(question, number)
    except UnicodeDecodeError as failure:
        raise SourceError(f"{file}: line {number + 1} is not UTF-8: {failure.reason}; write it anew as UTF-8") from None
    except OSError as failure:
        raise SourceError(f"{file}: the list of questions cannot be read: {failure}") from None
    if not numbers:
        raise SourceError(f"{file}: there is no question; write one a line")
    return {number: question for question, number in numbers.items()}


def draw_questions(questions: dict[int, str], count: int | None, seed: int, image: str) -> dict[int, str]:
    """Return so many of the questions, drawn for an image by its name, in the order of the list; all for None."""
    if count is None or count >= len(questions):
        return questions
    drawn = sorted(questions, key=lambda number: (hash_uniform(seed, image, questions[number]), number))[:count]
    return {number: questions[number] for number in sorted(drawn)}


def find_images(
    filesystem: pafs.FileSystem, directory: str, skip: Sequence[str] = ()
) -> tuple[list[str], dict[str, int]]:
    """Return the images and videos below a directory, sorted, and the endings of the other files with their numbers.

    An image is what has the ending or the first bytes of one: a file that is none behind its name ends as a row error.

    Args:
        skip: files that are neither.

    Returns:
        Paths relative to the directory.

    Raises:
        SourceError: it is no directory, or there is no image.
    """
    if filesystem.get_file_info(directory).type != pafs.FileType.Directory:
        raise SourceError(f"{directory}: no such directory; `questions` are asked about the images in one")
    found, others = [], Counter[str]()
    for file in files_below(filesystem, directory):
        below = posixpath.relpath(file.path, directory)
        if is_hidden(below) or file.path in skip:
            continue
        ending = posixpath.splitext(below)[1].lower().removeprefix(".")
        if ending in IMAGE_ENDINGS or ending in VIDEO_ENDINGS or _shows(filesystem, file.path):
            found.append(below)
        else:
            others[clean(f".{ending}" if ending else "")] += 1
    if not found:
        raise SourceError(f"{directory}: {others.total()} files, none of them an image")
    return found, dict(sorted(others.items()))


def _shows(filesystem: pafs.FileSystem, file: str) -> bool:
    """Tell whether a file begins as an image or a video does."""
    try:
        with filesystem.open_input_stream(file, compression=None) as handle:
            start: bytes = handle.read(_START_BYTES)
    except OSError:
        return False
    return is_image(start) or video_kind(start) is not None

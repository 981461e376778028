"""Small sources in every container and format, about images of every kind, and what is known of a changed one."""

from __future__ import annotations

import base64
import bz2
import csv
import functools
import gzip
import io
import itertools
import json
import re
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from carevl.data.formats import FORMATS
from tests.data.test_bad_sources import changed
from tests.helpers.image_kinds import KINDS, draw_picture
from tests.helpers.videos import KINDS as VIDEO_KINDS
from tests.helpers.videos import draw_clip

ROWS = 5
Rows = list[dict[str, Any]]
IMAGE_KINDS = list(KINDS)


@dataclass(frozen=True)
class Case:
    """A source: its files, of which one has the rows, and where in that the rows end (None where none can tell)."""

    name: str
    files: dict[str, bytes]
    data: str
    shown: list[set[str]]
    """The files that each row shows; none where images lie in the rows."""
    ends: list[int] | None = None

    @property
    def of_questions(self) -> bool:
        return FORMATS[self.name.partition(" ")[0]].of_questions

    @property
    def ending(self) -> str:
        """The ending of the file of rows, without that of its packing."""
        return "tar" if self.data.endswith(".tgz") else self.data.removesuffix(packing(self.data)).rpartition(".")[2]


@dataclass
class Known:
    """What is known of the rows of a changed source."""

    fewest: int = 0
    most: int = sys.maxsize
    fewest_silent: int = 0
    """How many there are where none is an error."""
    same: dict[int, int] = field(default_factory=dict)
    """Row to the row of the intact source that it is equal to."""
    is_packed: bool = False


def packing(name: str) -> str:
    return next((ending for ending in PACKED if name.endswith(ending)), "")


def _zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


def _unzstd(data: bytes) -> bytes:
    return bytes(pa.CompressedInputStream(pa.BufferReader(data), "zstd").read())


PACKED: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    ".gz": (lambda data: gzip.compress(data, mtime=0), gzip.decompress),
    ".bz2": (bz2.compress, bz2.decompress),
    ".zst": (_zstd, _unzstd),
    ".tgz": (lambda data: gzip.compress(data, mtime=0), gzip.decompress),
}
"""Ending to what packs a file, and what unpacks it."""


_SEVERAL: dict[str, dict[str, Any]] = {
    "trl with turns": FORMATS["trl"].example
    | {
        "images": ["a.png", "b.png"],
        "prompt": [
            {"role": "user", "content": "Do you see <image>?"},
            {"role": "assistant", "content": "I do."},
            {"role": "user", "content": "And <image>? What is it?"},
        ],
    },
    "llamafactory-sharegpt of two images": FORMATS["llamafactory-sharegpt"].example
    | {"images": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "<image><image>What is it?"}]},
}
_BY_NAME = ("coco-captions", "vqa")
"""Formats whose images are files beside the rows."""
EXAMPLES = {name: known.example for name, known in FORMATS.items()} | _SEVERAL


def _stand(value: Any, images: dict[str, object]) -> Any:
    """The value with images in the place of their names."""
    if isinstance(value, dict):
        return {name: _stand(one, images) for name, one in value.items()}
    if isinstance(value, list):
        return [_stand(one, images) for one in value]
    return images.get(value, value) if isinstance(value, str) else value


def _rows(name: str, images: list[object]) -> Rows:
    """Rows about an image each, or about that and the next one's."""
    rows = []
    for n, image in enumerate(images):
        example = changed(EXAMPLES[name], "What is it?", f'What "is" it,\n{n}, «ö»?')
        shown = {"a.png": image, "b.png": images[(n + 1) % len(images)]}
        rows.append({column: _stand(value, shown) for column, value in example.items()})
    return rows


def _bytes(name: str, data: bytes) -> object:
    return {"bytes": data, "path": name}


def _base64(name: str, data: bytes) -> object:
    return base64.b64encode(data).decode()


def _data_uri(name: str, data: bytes) -> object:
    return f"data:image/x;base64,{base64.b64encode(data).decode()}"


def _beside(name: str, data: bytes) -> object:
    return name


def _lines(rows: Rows) -> tuple[bytes, list[int]]:
    return _joined([json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows])


def _array(rows: Rows) -> tuple[bytes, list[int]]:
    texts = [json.dumps(row, indent=1).encode() for row in rows]
    data, ends = _joined([b"[" + texts[0], *(b",\n" + text for text in texts[1:]), b"]\n"])
    return data, ends[:-1]


def _object(rows: Rows) -> tuple[bytes, list[int]]:
    data, ends = _array(rows)
    before = b'{"info": {"version": 2.0}, "questions": '
    return before + data.strip() + b', "license": "none"}', [len(before) + end for end in ends]


def _joined(pieces: list[bytes]) -> tuple[bytes, list[int]]:
    return b"".join(pieces), list(itertools.accumulate(map(len, pieces)))


def _table(delimiter: str) -> Callable[[Rows], tuple[bytes, list[int]]]:
    def write(rows: Rows) -> tuple[bytes, list[int]]:
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        ends = []
        for row in rows:
            writer.writerow(row)
            ends.append(len(out.getvalue().encode()))
        return out.getvalue().encode(), ends

    return write


def _parquet(**options: Any) -> Callable[[Rows], tuple[bytes, None]]:
    def write(rows: Rows) -> tuple[bytes, None]:
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), out, row_group_size=2, **options)
        return out.getvalue(), None

    return write


def _arrow(new_writer: Callable[..., Any]) -> Callable[[Rows], tuple[bytes, None]]:
    def write(rows: Rows) -> tuple[bytes, None]:
        out = io.BytesIO()
        table = pa.Table.from_pylist(rows)
        with new_writer(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        return out.getvalue(), None

    return write


def _tar(rows: Rows, images: dict[str, bytes]) -> tuple[bytes, list[int]]:
    out = io.BytesIO()
    ends = []
    with tarfile.open(fileobj=out, mode="w") as archive:
        for n, row in enumerate(rows):
            shown = [image for image in images.items() if image[0].startswith(f"{n:03d}.")]
            for member, body in ((f"{n:03d}.json", json.dumps(row).encode()), *shown):
                info = tarfile.TarInfo(member)
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))
            ends.append(archive.offset)
    return out.getvalue(), ends


Write = Callable[[Rows], tuple[bytes, list[int] | None]]
Refer = Callable[[str, bytes], object]
_CONTAINERS: dict[str, tuple[Write, Refer]] = {
    "jsonl": (_lines, _beside),
    "ndjson": (_lines, _base64),
    "json": (_array, _beside),
    "values.json": (_lines, _data_uri),
    "object.json": (_object, _beside),
    "csv": (_table(","), _base64),
    "tsv": (_table("\t"), _beside),
    "parquet": (_parquet(), _bytes),
    "zstd.parquet": (_parquet(compression="zstd", use_dictionary=False), _beside),
    "plain.parquet": (_parquet(compression="none", data_page_version="2.0", write_page_checksum=True), _bytes),
    "arrow": (_arrow(pa.ipc.new_stream), _bytes),
    "footed.arrow": (_arrow(pa.ipc.new_file), _beside),
    "jsonl.gz": (_lines, _beside),
    "ndjson.zst": (_lines, _base64),
    "json.gz": (_array, _beside),
    "json.zst": (_array, _data_uri),
    "jsonl.bz2": (_lines, _beside),
    "csv.gz": (_table(","), _beside),
    "tsv.zst": (_table("\t"), _beside),
}
_TARS = ("tar", "tar.gz", "tgz", "tar.zst", "tar.bz2")
_FLAT = [name for name, known in FORMATS.items() if all(isinstance(value, str) for value in known.example.values())]
"""Formats whose columns are texts, which CSV and the metadata of a folder of images can hold."""


def make_cases() -> Iterator[Case]:
    """Make a source of every container and format, with images of every kind in turn."""
    kinds = itertools.cycle(KINDS)
    for name, container in itertools.product(EXAMPLES, (*_CONTAINERS, *_TARS)):
        in_tar = container in _TARS
        if container == "object.json" and "question" not in EXAMPLES[name]:
            continue
        if (name in _FLAT or "sv" not in container) and not (in_tar and name in (*_SEVERAL, *_BY_NAME)):
            yield _case(name, container, {f"{n:03d}.img": next(kinds) for n in range(ROWS)})
    for name, metadata in itertools.product(_FLAT, ("metadata.csv", "metadata.jsonl")):
        if "image" in FORMATS[name].example:
            yield _folder(name, metadata, [next(kinds) for _ in range(ROWS)])
    yield _videos()


def _pictures(kinds: dict[str, str]) -> dict[str, bytes]:
    return {name: KINDS[kind](draw_picture(n)) for n, (name, kind) in enumerate(kinds.items())}


def _case(name: str, container: str, kinds: dict[str, str]) -> Case:
    file = f"data.{container}"
    of_text = name in FORMATS and FORMATS[name].of_text
    is_beside = name in _BY_NAME or (container not in _TARS and _CONTAINERS[container][1] is _beside)
    in_rows = of_text or not is_beside
    if container in _TARS:
        kinds = {f"{n:03d}.{kind.partition('-')[0]}": kind for n, kind in enumerate(kinds.values())}
    images = _pictures(kinds)
    refer: Refer = _beside
    write: Write = functools.partial(_tar, images={} if of_text else images)
    if container not in _TARS:
        write, refer = _CONTAINERS[container]
        refer = _beside if is_beside else refer
    data, ends = write(_rows(name, [refer(*image) for image in images.items()]))
    if pack := PACKED.get(packing(file)):
        data, ends = pack[0](data), None
    if in_rows:
        return Case(f"{name} in {container}", {file: data}, file, [set()] * ROWS, ends)
    names = list(images)
    shown = [{names[n], names[(n + 1) % ROWS]} if name in _SEVERAL else {names[n]} for n in range(ROWS)]
    return Case(f"{name} in {container}", {file: data, **images}, file, shown, ends)


def _folder(name: str, metadata: str, kinds: list[str]) -> Case:
    images = _pictures({f"{n:03d}.{kind.partition('-')[0]}": kind for n, kind in enumerate(kinds)})
    rows = [
        {"file_name" if key == "image" else key: value for key, value in row.items()}
        for row in _rows(name, list(images))
    ]
    data, ends = (_table(",") if metadata.endswith("csv") else _lines)(rows)
    return Case(
        f"{name} in a folder with {metadata}", {metadata: data, **images}, metadata, [{name} for name in images], ends
    )


def _videos() -> Case:
    """A source about a video of every kind."""
    clips = {f"{n}.img": draw_clip(6 + n, container) for n, container in enumerate(VIDEO_KINDS)}
    rows = [
        {("video" if key == "image" else key): value for key, value in row.items()}
        for row in _rows("spa-vl", list(clips))
    ]
    data, ends = _lines(rows)
    return Case("spa-vl about videos", {"data.jsonl": data, **clips}, "data.jsonl", [{name} for name in clips], ends)


def known_of(case: Case, file: str, new: bytes) -> Known:
    """Return what is known of the rows where one file of a case has become other bytes."""
    old = case.files[file]
    if file != case.data:
        return Known(ROWS, ROWS, same={n: n for n, shown in enumerate(case.shown) if file not in shown})
    if (unpack := PACKED.get(packing(file))) is None:
        return _known_rows(case, old, new)
    try:
        known = _known_rows(case, unpack[1](old), unpack[1](new))
    except Exception:  # what the packing raises for what is damaged
        return Known(fewest=1, is_packed=True)
    return replace(known, is_packed=True)


def _known_rows(case: Case, old: bytes, new: bytes) -> Known:
    """Return what is known of a file of rows that is not packed."""
    if old == new:
        return Known(ROWS, ROWS, same={n: n for n in range(ROWS)})
    if case.ending in ("jsonl", "ndjson"):
        return _known_lines(old, new)
    known = Known()
    if (count := _COUNTS[case.ending](old, new)) is not None:
        known = Known(count, count)
    elif len(new.rstrip(b"\0")) >= len(old.rstrip(b"\0")) and not (case.ending == "tar" and _is_several(new)):
        known.fewest_silent = ROWS
    if case.ends is not None and not packing(case.data):
        first = next((n for n, (one, two) in enumerate(zip(old, new, strict=False)) if one != two), len(new))
        known.same = {n: n for n, end in enumerate(case.ends) if end <= first}
        known.fewest = max(known.fewest, len(known.same))
    return known


def _known_lines(old: bytes, new: bytes) -> Known:
    places = {line: n for n, line in enumerate(old.split(b"\n"))}
    lines = [line for line in new.split(b"\n") if line.strip()]
    return Known(len(lines), len(lines), same={n: places[line] for n, line in enumerate(lines) if line in places})


def _count_json(old: bytes, new: bytes) -> int | None:
    try:
        value = json.loads(new.decode("utf-8-sig", "surrogateescape"))
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and isinstance(rows := value.get("questions"), list):
        return len(rows) if rows and "question" in rows[0] else 1
    return len(value) if isinstance(value, list) else 1


def _count_cells(old: bytes, new: bytes) -> int | None:
    one, two = (re.sub(rb'[^",\t\r\n]+', b"x", data.removeprefix(b"\xef\xbb\xbf")) for data in (old, new))
    return ROWS if one == two else None


def _count_parquet(old: bytes, new: bytes) -> int | None:
    try:
        facts = pq.ParquetFile(io.BytesIO(new)).metadata
        sizes = [facts.row_group(n).num_rows for n in range(facts.num_row_groups)]
    except Exception:  # as for packings
        return None
    return facts.num_rows if facts.num_rows == sum(sizes) else None


def _count_samples(old: bytes, new: bytes) -> int | None:
    """The samples where no header of the archive was changed."""
    with tarfile.open(fileobj=io.BytesIO(old)) as archive:
        members = archive.getmembers()
        headers = [(member.offset, member.offset_data) for member in members]
        end = archive.offset
    same = all(old[start:stop] == new[start:stop] for start, stop in [*headers, (end, None)])
    return ROWS if len(old) == len(new) and same else None


def _is_several(archive: bytes) -> bool:
    """Whether zeros before a whole record make the rest another archive."""
    records = range(tarfile.RECORDSIZE, len(archive.rstrip(b"\0")), tarfile.RECORDSIZE)
    return any(not any(archive[start - 1024 : start]) for start in records)


_COUNTS: dict[str, Callable[[bytes, bytes], int | None]] = {
    "json": _count_json,
    "csv": _count_cells,
    "tsv": _count_cells,
    "parquet": _count_parquet,
    "arrow": lambda old, new: None,
    "tar": _count_samples,
}

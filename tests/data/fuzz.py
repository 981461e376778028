"""Change bytes of sources in every container and format, and of images and videos of every kind, and read what is left.

    python -m tests.data.fuzz --changes 100000 --seed 1

Every change ends as items and row errors: nothing is raised, no row gets lost, rows that a change leaves alone are what
they were, every locator that is read comes out, and pieces of a file have the rows of the file. Prints one JSON object;
the exit status is 1 where that does not hold. `--only N` reads change N of the seed again, in this process. Changes are
read by a process of their own, so that one that kills it or takes longer than 30 seconds is counted, and the next ones
follow.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
from pyarrow.fs import LocalFileSystem

from carevl.data import json_rows
from carevl.data.containers import read_records
from carevl.data.images import ImageLimits, decode_rgb
from carevl.data.intake import Intake, merge_images, merge_items
from carevl.data.reading import Source, read_source
from carevl.data.rows import ErrorKind
from carevl.data.spans import divide
from carevl.store.schemas import IMAGES, ITEMS
from tests.data.fuzz_cases import PACKED, ROWS, Case, Known, known_of, make_cases, packing

FAULTS = ("crashes", "lost", "altered", "divided", "unnamed")

LIMITS = ImageLimits(max_image_pixels=1_000_000)
SECONDS = 30
MEMORY = 16 << 30
OF_A_PROCESS = 10_000
"""Changes that one process reads: some decoders keep a little of what is damaged."""
SHOWN = 40
CHUNKS = (5, 64, 1 << 18)
"""Bytes that readers of texts take at once: rows of a real file lie across the edges of what is read."""
_TEXTS = ('"', "\n", "\r\n", ",", "\t", "{", "}", "[", "]", "\\u0000", "null", "NaN", "1e999", "-1", "<image>")
_BYTES = ("00", "ff", "eda080", "efbbbf", "ffffff7f", "80000000", "ff" * 8, "00" * 16)
ODD = (*map(str.encode, _TEXTS), *map(bytes.fromhex, _BYTES))
"""What readers may take amiss: marks of formats, surrogates, extreme numbers."""


def change(data: bytes, rng: random.Random) -> bytes:
    """Change one to three places of some bytes, none of which may be the same afterwards."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = _CHANGES[rng.randrange(len(_CHANGES))](data, rng)
    return data


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 1, 2, 4, 16, 64, 512, 4096)))


def _flip(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if data else 0):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _set(data: bytes, rng: random.Random) -> bytes:
    odd = rng.choice(ODD)
    start = rng.randrange(len(data) + 1)
    return data[:start] + odd + data[start + len(odd) :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    start, stop = _span(data, rng)
    return data[:start] + data[stop:]


def _break_off(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _insert(data: bytes, rng: random.Random) -> bytes:
    start, _ = _span(data, rng)
    return (
        data[:start]
        + (rng.choice(ODD) if rng.random() < 0.5 else rng.randbytes(rng.choice((1, 8, 512))))
        + data[start:]
    )


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start, stop = _span(data, rng)
    place = rng.randrange(len(data) + 1)
    return data[:place] + data[start:stop] * rng.choice((1, 1, 3)) + data[place:]


def _swap(data: bytes, rng: random.Random) -> bytes:
    one, two, three = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    return data[:one] + data[two:three] + data[one:two] + data[three:]


def _blank(data: bytes, rng: random.Random) -> bytes:
    start, stop = _span(data, rng)
    return data[:start] + bytes(stop - start) + data[stop:]


_CHANGES = (_flip, _flip, _set, _cut, _break_off, _insert, _repeat, _swap, _blank)


def change_file(name: str, data: bytes, rng: random.Random) -> bytes:
    """Change a file; half of the time what is in a packed one, or a sum that would give the change away is mended."""
    sealed = rng.random() < 0.5
    if sealed and (pack := PACKED.get(packing(name))):
        return pack[0](change(pack[1](data), rng))
    changed = change(data, rng)
    if sealed and data.startswith(b"\x89PNG"):
        return _seal_png(changed)
    return _seal_tar(changed) if sealed and name.endswith(".tar") else changed


def _seal_png(data: bytes) -> bytes:
    """The file with a right sum behind every chunk, as far as chunks follow one another."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        out += data[at:end] + zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return out + data[at:]


def _seal_tar(data: bytes) -> bytes:
    """The archive with a right sum in every block that looks like a header."""
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    return b"".join(_seal_header(block) if block[257:262] == b"ustar" else block for block in blocks)


def _seal_header(block: bytes) -> bytes:
    total = sum(block[:148]) + 8 * 32 + sum(block[156:])
    return block[:148] + f"{total:06o}\0 ".encode() + block[156:]


class Sources:
    """Sources on disk, whose files are changed in turn.

    Args:
        directory: where they are written.
    """

    def __init__(self, directory: Path, cases: Iterable[Case]) -> None:
        self.cases = list(cases)
        self.places = [directory / f"{n:03d}" for n in range(len(self.cases))]
        self.intact: list[list[str]] = []
        for case, place in zip(self.cases, self.places, strict=True):
            place.mkdir()
            for name, data in case.files.items():
                (place / name).write_bytes(data)
            items = _take_in(Source("fuzz", str(place), respond=case.of_questions))[1]
            bad = [item["error"] for item in items if item["error"]]
            if bad or len(items) != ROWS:
                raise SystemExit(f"{case.name}: the intact source has {len(items)} rows: {bad}")
            self.intact.append([item["item_id"] for item in items])

    def read_changed(self, seed: int, number: int) -> dict[str, Any]:
        """Make one change, read the source, and return its counts of rows, items and errors, and the fault."""
        rng = random.Random(f"{seed}:{number}")
        n = rng.randrange(len(self.cases))
        case, place = self.cases[n], self.places[n]
        beside = [name for name in case.files if name != case.data]
        file = rng.choice(beside) if beside and rng.random() < 0.5 else case.data
        data = change_file(file, case.files[file], rng)
        declared = case.name.partition(" ")[0] if rng.random() < 0.5 else None
        json_rows._CHUNK_BYTES = rng.choice(CHUNKS)
        (place / file).write_bytes(data)
        outcome: dict[str, Any] = {
            "change": number,
            "case": f"{case.name}: {file}",
            "rows": 0,
            "items": 0,
            "errors": {},
        }
        try:
            images, items = _take_in(Source("fuzz", str(place), declared, respond=case.of_questions))
            _follow(images, items)
            fault = _find_fault(case, known_of(case, file, data), self.intact[n], items) or _divide(place / case.data)
        except Exception:
            return outcome | {"fault": ["crashes", traceback.format_exc()[-2000:]]}
        finally:
            (place / file).write_bytes(case.files[file])
        errors = Counter(item["error"]["kind"] for item in items if item["error"])
        return outcome | {"rows": len(items), "items": len(items) - errors.total(), "errors": errors, "fault": fault}


def _take_in(source: Source) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    intake = Intake(source, limits=LIMITS, signatures=True)
    taken = [intake(row) for row in read_source(source)]
    return [image for images, _ in taken for image in images], [item for _, item in taken]


def _follow(images: list[dict[str, Any]], items: list[dict[str, Any]]) -> None:
    """Do what a run does with rows that were taken in: into tables, and images to models."""
    merged = pa.Table.from_pylist(merge_items(items), ITEMS)
    pa.Table.from_pylist(merge_images(images), IMAGES)
    came_out = [source["locator"] for row in merged["sources"].to_pylist() for source in row]
    assert sorted(came_out) == sorted(item["sources"][0]["locator"] for item in items), "rows in are not rows out"
    for image in images:
        if image["bytes"] is not None:
            decode_rgb(image["bytes"], LIMITS, resize_pixels=100)


def _divide(file: Path) -> tuple[str, str] | None:
    """Return a fault where the pieces of a file have other rows than the file."""
    local = LocalFileSystem()
    spans = divide(local, str(file), 1)
    pieces = [repr(record) for span in spans for record in read_records(local, str(file), span)]
    whole = [repr(record) for record in read_records(local, str(file))] if spans else []
    others = [(one, two) for one, two in zip(pieces, whole, strict=False) if one != two]
    if others or len(pieces) != len(whole):
        return "divided", f"{len(pieces)} rows in pieces, {len(whole)} in all: {str(others[:1])[:500]}"
    return None


def _find_fault(case: Case, known: Known, intact: list[str], items: list[dict[str, Any]]) -> tuple[str, str] | None:
    errors = [item["error"] for item in items if item["error"]]
    for error in errors:
        if error["kind"] not in get_args(ErrorKind) or not error["message"].strip() or len(error["message"]) > 2500:
            return "unnamed", str(error)
    locators = [item["sources"][0]["locator"] for item in items]
    rows = [list(pieces) for _, pieces in itertools.groupby(items, key=_row_of)]
    if locators != [name for n, pieces in enumerate(rows) for name in _locators(f"{case.data}#{n}", len(pieces))]:
        return "lost", f"the locators are {locators}"
    shown = json.dumps([item["error"] or "item" for item in items])[:1000]
    if known.is_packed and any(error["kind"] == "file" for error in errors):
        return None  # how much is unpacked before the damage is up to the packing
    if not known.fewest <= len(rows) <= known.most or (len(rows) < known.fewest_silent and not errors):
        return "lost", f"{len(rows)} rows where there are {known}: {shown}"
    for n, old in known.same.items():
        if [item["item_id"] for item in rows[n]] != [intact[old]]:
            return "altered", f"row {n} was left alone and is another: {shown}"
    return None


def _row_of(item: dict[str, Any]) -> str:
    """The locator of the row that an item is, or is a piece of."""
    file, _, row = item["sources"][0]["locator"].rpartition("#")
    return f"{file}#{row.partition('.')[0]}"


def _locators(row: str, pieces: int) -> list[str]:
    return [row] if pieces == 1 else [f"{row}.{n}" for n in range(pieces)]


def work(numbers: Iterable[int], seed: int) -> None:
    """Make changes in this process; print a line about each before it is read, and one afterwards."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as directory:
        sources = Sources(Path(directory), make_cases())
        for number in numbers:
            signal.alarm(SECONDS)
            print(json.dumps(sources.read_changed(seed, number)), flush=True)
            signal.alarm(0)


def outcomes(changes: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the outcome of every change, read by processes of their own.

    Raises:
        SystemExit: a process ends before it has read anything.
    """
    number = 0
    while number < changes:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.data.fuzz",
            "--seed",
            str(seed),
            "--changes",
            str(changes),
        ]
        with subprocess.Popen([*command, "--from", str(number)], stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            begun: dict[str, Any] = {}
            for line in worker.stdout:
                outcome = json.loads(line)
                if "fault" in outcome:
                    yield outcome
                    number += 1
                else:
                    begun = outcome
        if worker.returncode > 0:
            raise SystemExit(worker.returncode)
        if worker.returncode < 0:
            yield begun | {"fault": ["crashes", f"its process died of {signal.Signals(-worker.returncode).name}"]}
            number += 1


def summarise(changes: int, seed: int) -> dict[str, Any]:
    """Make all changes, or those before Ctrl-C; return their counts, how many a second, and the first faults."""
    started = time.monotonic()
    counts, errors = Counter[str](dict.fromkeys(("changes", "rows", "items", *FAULTS), 0)), Counter[str]()
    faults = []
    with suppress(KeyboardInterrupt):
        for outcome in outcomes(changes, seed):
            counts.update(changes=1, rows=outcome["rows"], items=outcome["items"])
            errors.update(outcome["errors"])
            if outcome["fault"]:
                counts[outcome["fault"][0]] += 1
                faults.append({name: outcome[name] for name in ("change", "case", "fault")})
    seconds = time.monotonic() - started
    speed = {"seconds": round(seconds, 1), "changes_per_second": round(counts["changes"] / seconds, 1)}
    return {"seed": seed, **counts, **speed, "errors": dict(errors.most_common()), "faults": faults[:SHOWN]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="read this change in this process, and no other")
    parser.add_argument("--from", type=int, dest="start", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    numbers = None
    if arguments.only is not None:
        numbers = range(arguments.only, arguments.only + 1)
    elif arguments.start is not None:
        numbers = range(arguments.start, min(arguments.changes, arguments.start + OF_A_PROCESS))
    if numbers is not None:
        work(numbers, arguments.seed)
        return 0
    summary = summarise(arguments.changes, arguments.seed)
    print(json.dumps(summary, indent=1))
    return int(any(summary[fault] for fault in FAULTS))


if __name__ == "__main__":
    sys.exit(main())

"""Ingest of rows in each kind of file, against `datasets` on the same files: rows per second.

    python tests/bench/bench_ingest.py [--rows 20000] [--kinds jsonl parquet tar csv]

Each row has a drawn JPEG picture of its own of 224 x 168 pixels: beside JSON Lines and CSV, inside Parquet and tar.
Ingest is the stage as a run has it, from the files to the tables `images` and `items`, near-duplicates reported; it
also hashes and keeps the bytes. `datasets` streams the rows and decodes their images, and writes nothing. Both take all
cores that they know to use. Prints one JSON line per kind.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from carevl.settings.data import Source
from carevl.settings.loader import load_settings
from carevl.stages.ingest import run_ingest
from carevl.store.run import Run

SIZE = (224, 168)
ROW_GROUP = 1000
ROOT = Path(__file__).parents[2]


def rows(n: int) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Rows without their image, and the image of each."""
    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(SIZE)
        data = io.BytesIO()
        coarse.save(data, "JPEG", quality=90)
        answers = {"chosen": f"There are {i} circles.", "rejected": f"I see {i + 1} circles in this picture."}
        yield {"question": f"How many circles are there in picture {i}?", **answers}, data.getvalue()


def write_beside(directory: Path, n: int) -> Iterator[dict[str, Any]]:
    """Rows whose images were written into files beside them."""
    for i, (row, image) in enumerate(rows(n)):
        (directory / f"{i:06d}.jpg").write_bytes(image)
        yield {"image": f"{i:06d}.jpg", **row}


def write_jsonl(directory: Path, n: int) -> None:
    with (directory / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in write_beside(directory, n))


def write_csv(directory: Path, n: int) -> None:
    with (directory / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "question", "chosen", "rejected"])
        writer.writeheader()
        writer.writerows(write_beside(directory, n))


def write_parquet(directory: Path, n: int) -> None:
    table = [{"image": {"bytes": image, "path": f"{i}.jpg"}, **row} for i, (row, image) in enumerate(rows(n))]
    pq.write_table(pa.Table.from_pylist(table), directory / "rows.parquet", row_group_size=ROW_GROUP)


def write_tar(directory: Path, n: int) -> None:
    with tarfile.open(directory / "rows.tar", "w") as archive:
        for i, (row, image) in enumerate(rows(n)):
            for ending, data in (("json", json.dumps(row).encode()), ("jpg", image)):
                member = tarfile.TarInfo(f"{i:06d}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


KINDS: dict[str, tuple[Callable[[Path, int], None], str, str]] = {
    "jsonl": (write_jsonl, "json", "image"),
    "parquet": (write_parquet, "parquet", "image"),
    "tar": (write_tar, "webdataset", "jpg"),
    "csv": (write_csv, "csv", "image"),
}
"""Kind to what writes it, its loader in `datasets`, and the column of the image there."""


FEATURES = datasets.Features(
    {"image": datasets.Image(), **{name: datasets.Value("string") for name in ("question", "chosen", "rejected")}}
)
WARM_UP = 20
"""Rows that are read first, so that no figure has the time of imports."""


def ingest(directory: Path) -> int:
    """Take the rows in as a run does; return how many there are."""
    settings = load_settings("mini")
    data = settings.data.model_copy(update={"sources": [Source(path=str(directory))]})
    settings = settings.model_copy(update={"data": data, "benchmarks": [], "items": None})
    with tempfile.TemporaryDirectory() as run:
        counts = run_ingest(settings, Run(Path(run)), Path(run, "ingest"), lambda *_: None)
    assert counts["errors"] == 0
    return int(counts["rows_in"])


def stream(directory: Path, loader: str, column: str) -> int:
    """Read the rows with `datasets` and decode their images; return how many there are."""
    [file] = directory.glob("rows.*")
    dataset = datasets.load_dataset(loader, data_files=str(file), split="train", streaming=True)
    dataset = dataset if loader == "webdataset" else dataset.cast(FEATURES)
    count = 0
    os.chdir(directory)  # paths of images are relative to it
    for row in dataset:
        row[column].convert("RGB")
        count += 1
    return count


def rate(read: Callable[[], int]) -> tuple[float, float]:
    """Rows per second, and CPU seconds."""
    started, spent = time.perf_counter(), time.process_time()
    count = read()
    return count / (time.perf_counter() - started), time.process_time() - spent


def measure(kind: str, n: int) -> dict[str, Any]:
    """The figure of a kind."""
    write, loader, column = KINDS[kind]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write(directory, n)
        ours, cpu = rate(lambda: ingest(directory))
        peer, peer_cpu = rate(lambda: stream(directory, loader, column))
        os.chdir(ROOT)
    line = {"figure": f"ingest_{kind}", "value": round(ours, 1), "unit": "rows/s", "rows": n, "cpu_s": round(cpu, 1)}
    line |= {"peer": f"datasets {datasets.__version__}, streamed and decoded", "peer_value": round(peer, 1)}
    line |= {"peer_cpu_s": round(peer_cpu, 1), "ratio": round(ours / peer, 3), "goal": None}
    return line | {"load": round(os.getloadavg()[0], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    arguments = parser.parse_args()
    for kind in arguments.kinds:
        measure(kind, WARM_UP)
        print(json.dumps(measure(kind, arguments.rows)), flush=True)


if __name__ == "__main__":
    main()

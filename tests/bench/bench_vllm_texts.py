"""How many sampled texts differ under vLLM when a run is done again, or done in other pieces.

    python tests/bench/bench_vllm_texts.py [--items 24]

The stage `sample` of the preset `mini` with vLLM: every item is judged in both orders, several times, each with a seed
of its own. `vllm_texts_again`: the same parts in another process, as after a kill. `vllm_texts_other_parts`: the same
items in parts of a quarter of the size, last part first, so that other requests share a batch. The value is the share
of texts that differ from those of the first process. Beside it `verdicts`, the share of verdicts that do, and the same
shares for greedy texts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench_pools import SETTINGS, draw  # type: ignore[import-not-found]  # it lies beside this script

from carevl.stages import sample, sampling
from carevl.store.table import Table

LAYOUTS = {"first": (1, 1), "vllm_texts_again": (1, 1), "vllm_texts_other_parts": (4, -1)}
"""Into how many a part is cut, and in which order these come."""
Texts = dict[str, tuple[str, int | None]]
"""Text and verdict of every judgment."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--layout", choices=LAYOUTS, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.layout:
        print(json.dumps(judged(arguments.directory, *LAYOUTS[arguments.layout])))
        return
    with tempfile.TemporaryDirectory() as directory:
        draw(Path(directory), 1, arguments.items)
        command = [sys.executable, __file__, "--directory", directory, "--layout"]
        said = {
            name: json.loads(
                subprocess.run([*command, name], stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1]
            )
            for name in LAYOUTS
        }
    first = said.pop("first")
    for name, others in said.items():
        shares = {heat: differing(first[heat], others[heat]) for heat in first}
        line = {"figure": name, "value": shares["sampled"][0], "unit": "share of texts", "peer": None, "ratio": None}
        more = {"verdicts": shares["sampled"][1], "greedy": shares["greedy"][0], "greedy_verdicts": shares["greedy"][1]}
        print(json.dumps(line | {"goal": None, "texts": len(first["sampled"]), **more}), flush=True)


def differing(first: Texts, others: Texts) -> tuple[float, float]:
    """Share of the texts, and of the verdicts, that are not the same."""
    assert first.keys() == others.keys()
    texts, verdicts = (sum(first[key][k] != others[key][k] for key in first) / len(first) for k in (0, 1))
    return round(texts, 4), round(verdicts, 4)


def judged(directory: Path, pieces: int, direction: int) -> dict[str, Texts]:
    """Texts at the stage's temperature, and greedy ones."""
    tables = {name: Table(directory / name).read(0) for name in ("items", "images", "routes")}
    spec = sample.sampling_spec(SETTINGS)
    found: dict[str, Texts] = {}
    for heat, temperature in (("sampled", spec.temperature), ("greedy", 0.0)):
        judge = sampling.JudgeProcessor(SETTINGS.judge, replace(spec, temperature=temperature)).load()
        size = -(-len(tables["items"]) // pieces)
        starts = range(0, len(tables["items"]), size)[::direction]
        rows: list[dict[str, Any]] = []
        for start in starts:
            part = {name: table.slice(start, size) for name, table in tables.items()}
            rows += judge.process(part).to_pylist()
        found[heat] = {
            json.dumps([row["item_id"], row["order"], row["sample"]]): (row["text"], row["winner"]) for row in rows
        }
        del judge
    return found


if __name__ == "__main__":
    main()

"""Experts spread over three raylets, one of which is killed and replaced while they score.

Nightly: four raylets on one machine take minutes; actors and drivers that are killed are tested in tests/pipeline.
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from carevl.store.table import Table

ENTRY = Path(__file__).parents[2] / "ray_jobs" / "score.py"
EXPERTS = ("llama", "qwen2", "mistral")


def _table(run, stage):
    [directory] = run.glob(f"{stage}/*")
    return Table(directory).read()


@pytest.mark.fault
@pytest.mark.nightly
def test_a_lost_node_costs_no_row_and_changes_none(raylets, words, submitted, tmp_path):
    nodes = {name: raylets.add(**{name: 1}) for name in EXPERTS}
    placed = [f"experts.{n}.pool.resources={{{name}: 1}}" for n, name in enumerate(EXPERTS)]
    run = tmp_path / "run"
    command = [sys.executable, ENTRY, *words(run, f"cluster.address={raylets.address}", *placed)]
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log)

    def parts():
        return {file: file.stat().st_mtime_ns for file in run.glob("score/qwen2/*/part-*.parquet")}

    while len(parts()) < 2:
        assert driver.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.01)
    assert raylets.busy(nodes["qwen2"], "MapWorker")
    raylets.kill(nodes["qwen2"])
    kept = parts()
    assert 2 <= len(kept) < 16
    raylets.add(qwen2=1)
    assert driver.wait() == 0, (tmp_path / "log").read_text()

    assert parts().items() >= kept.items()
    [items] = [Table(ingested / "items").read() for ingested in run.glob("ingest/*")]
    wanted = sorted((item, view) for item in items["item_id"].to_pylist() for view in ("default", "none"))
    for name in EXPERTS:
        scores = _table(run, f"score/{name}")
        assert sorted(zip(scores["item_id"].to_pylist(), scores["view"].to_pylist(), strict=True)) == wanted
        assert scores.equals(_table(submitted.run, f"score/{name}"))
    assert _table(run, "caption").equals(_table(submitted.run, "caption"))

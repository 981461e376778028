"""Rehearsals of the presets for GPUs: a command, the small models that it meets, the settings that are changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.hub import Hub

CAREVL = Path(sys.executable).with_name("carevl")
REPOSITORY = Path(__file__).parents[2]
ITEMS = 60
STANDING_IN = ("captioner", "judge", "expert-llama", "expert-qwen2", "expert-mistral")
"""The shipped models that stand in for the presets' captioner, judge and experts, in that order."""
LEARNED = [
    "captioner.prompt=List the objects in the image.",
    *(f'experts.{n}.template="Image: {{caption}}\\n{{question}}"' for n in range(3)),
]
"""The prompt and the template that the stand-ins learned to read."""
FEW_PAIRS = ["router.threshold=0.6", "select.min_gap=0.1"]
"""Of so few pairs, none without labels may reach the presets' own."""


@dataclass(frozen=True)
class Rehearsal:
    """A command that is given again and again with the same settings, in the same run directory."""

    command: Sequence[str | Path]
    run: Path
    environment: dict[str, str]

    def run_again(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        environment = self.environment | environment
        command = [*self.command, *words, "--run-dir", self.run]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1800)
        (self.run.parent / "log").write_text(done.stdout + done.stderr)
        return done


def words_of(overrides: Sequence[str]) -> list[str]:
    """The overrides as arguments."""
    return [word for override in overrides for word in ("--set", override)]


def data_of(world: Path, *, labels: bool) -> list[str]:
    """What a user says of their data: pairs alone, or labelled pairs and a benchmark besides."""
    sources = [{"name": "pairs", "path": str(world / "train" / "rlaif_v.parquet")}]
    if not labels:
        return [f"data.sources.0.path={sources[0]['path']}"]
    labelled = {"path": str(world / "calibration" / "rlaif_v.parquet"), "labels": True, "split": "calibration"}
    benchmark = {"name": "vl-rewardbench", "path": str(world / "dev" / "vl_rewardbench.parquet"), "rows": 12}
    values = {"data.sources": [*sources, {"name": "labelled", **labelled}], "benchmarks": [benchmark]}
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def environment_for(hub: Hub, home: Path) -> dict[str, str]:
    """The environment of a rehearsal's processes: the hub, and this repository's code."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return kept | hub.environment(home) | {"PYTHONPATH": str(REPOSITORY)}


def check_offline(rehearsal: Rehearsal) -> None:
    """Check that the same command makes nothing again without a network."""
    done = rehearsal.run_again(HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    stages = json.loads((rehearsal.run / "results.json").read_text())["stages"]
    assert {stage["action"] for stage in stages} == {"skipped"}


def check_rehearsal(run: Path) -> None:
    """Check that a run directory has all that a run makes, without an error, and that all of it says what it is."""
    assert list((run / "judge").glob("model*.safetensors"))
    assert "a rehearsal" in (run / "judge" / "README.md").read_text()
    stages = json.loads((run / "results.json").read_text())["stages"]
    assert {stage["action"] for stage in stages} == {"ran"}
    assert all(stage["rows_out"] for stage in stages if not stage["name"].startswith("evaluate/"))
    assert not sum(stage["errors"] for stage in stages)
    for stage in stages:
        [manifest] = run.glob(f"{stage['name']}/{stage['fingerprint']}/manifest.json")
        assert json.loads(manifest.read_text())["rehearsal"]

"""The shipped models: where they lie, and the manifest that tells whether they are whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent / "weights"
"""Directory of the shipped models: `captioner`, `judge`, `expert-llama`, `expert-qwen2`, `expert-mistral`."""
MANIFEST = WEIGHTS / "manifest.json"


def sha256_sums(directory: Path) -> dict[str, str]:
    """Return the sha256 of every file below a directory but its manifest.json, by relative path."""
    files = sorted(f for f in directory.rglob("*") if f.is_file() and f != directory / MANIFEST.name)
    return {str(f.relative_to(directory)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def write_manifest(directory: Path, facts: dict[str, Any]) -> None:
    """Write manifest.json: the sums of all files, and `facts`."""
    manifest = {"sha256": sha256_sums(directory), **facts}
    (directory / MANIFEST.name).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def damaged(directory: Path = WEIGHTS) -> list[str]:
    """Return the files that are missing or differ from the manifest's sums; empty when all is well."""
    recorded: dict[str, str] = json.loads((directory / MANIFEST.name).read_text())["sha256"]
    actual = sha256_sums(directory)
    return sorted(name for name, digest in recorded.items() if actual.get(name) != digest)

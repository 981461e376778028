"""What a stage's result depends on, and what of it has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StageKey:
    """Everything that a stage's result depends on.

    `fingerprint_inputs` is a JSON-able tree: the stage's version, the settings that matter to it, the fingerprints of
    its inputs and of the weights, prompts and templates that it uses.
    """

    stage: str
    fingerprint_inputs: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the sha256 of stage and inputs."""
        text = json.dumps([self.stage, self.fingerprint_inputs], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return what changed between two trees of facts, one line per leaf: `caption.prompt: 'a' -> 'b'`.

    Lists of one length are compared entry by entry.
    """
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [f"{path}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."

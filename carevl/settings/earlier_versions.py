"""Settings of earlier versions that have become others. Fingerprints keep their names, so tables are found again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WORD_WEIGHTS = {
    "evidence_weight": "carevl.compare.words:EvidenceWords",
    "answer_weight": "carevl.compare.words:AnswerWords",
}
"""Weight that was a field of `select`, to the rule of `select.rules` that has it now."""


def take_over(tree: dict[str, Any]) -> list[str]:
    """Turn settings of an earlier version in a tree of values into those of this one; return a line for each."""
    lines: list[str] = []
    select = tree.get("select")
    if not isinstance(select, dict) or not isinstance(rules := select.get("rules", {}), dict):
        return lines
    for name, rule in _WORD_WEIGHTS.items():
        if name not in select:
            continue
        weight = select.pop(name)
        select["rules"] = rules = {path: rules[path] for path in rules if path != rule}
        if weight != 0:
            rules[rule] = weight
            lines.append(f'select.{name} of an earlier version is read as select.rules: {{"{rule}": {weight}}}')
    return lines


def split_rules(rules: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the weights that were fields of `select` once, by their names then, and the rules that never were."""
    weights = {name: rules.get(rule, 0.0) for name, rule in _WORD_WEIGHTS.items()}
    return weights, {path: weight for path, weight in rules.items() if path not in _WORD_WEIGHTS.values()}

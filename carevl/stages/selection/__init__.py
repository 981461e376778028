"""Rules of selection: what says which verdict of a low-confidence pair is right. A file each."""

from carevl.settings.registry import Registry
from carevl.stages.selection import consistency, experts, testimony
from carevl.stages.selection.base import JudgedPair, SelectionRule

RULES: Registry[SelectionRule] = Registry(
    "selection rule", SelectionRule, (consistency.RULE, experts.RULE, testimony.RULE)
)

__all__ = ["RULES", "JudgedPair", "SelectionRule"]

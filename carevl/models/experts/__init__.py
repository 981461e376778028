"""The kinds of experts, by the name that settings call them by: rows of a user turn and its responses to scores.

A user's own is `kind: package.module:NAME`, an instance of `carevl.models.experts.base.ExpertKind`.
"""

from __future__ import annotations

from carevl.models.experts import endpoint, llm, python, reward_model, vlm
from carevl.models.experts.base import ExpertKind
from carevl.settings.registry import Registry

EXPERT_KINDS: Registry[ExpertKind] = Registry(
    "expert kind", ExpertKind, (reward_model.KIND, llm.KIND, vlm.KIND, endpoint.KIND, python.KIND)
)

"""ArmoRM: several objectives, weighted by a network that reads the prompt.

`LlamaForRewardModelWithGating` (RLHFlow/ArmoRM-Llama3-8B-v0.1, `modeling_custom.py`; arXiv 2406.12845): with h the
state of the last token and p that of the token where the response's header begins,
    rewards = regression_layer(h) @ reward_transform_matrix
    weights = logit_scale * softmax(gating(p) / gating_temperature)
    score   = sum of rewards * weights
where gating is linear layers with ReLU between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from carevl.models.heads.base import FoundHead, HeadKind, HeadTensors
from carevl.models.heads.linear import make_linear

if TYPE_CHECKING:
    from torch import Tensor, nn

_ARCHITECTURE = "LlamaForRewardModelWithGating"
_REGRESSION, _TRANSFORM, _SCALE = "regression_layer.weight", "reward_transform_matrix", "gating.logit_scale"
_TEMPERATURE = 10.0


class GatedKind(HeadKind):
    """Objectives and their gate."""

    name = "gated"

    def find(self, stored: HeadTensors) -> FoundHead | None:
        """Return the head of ArmoRM; others of its name compute something else, and are told by their tensors."""
        if _ARCHITECTURE not in (getattr(stored.config, "architectures", None) or ()):
            return None
        layers = sorted(int(name.split(".")[2]) for name in stored.shapes if _is_gate(name) and name.endswith("weight"))
        if layers != list(range(len(layers))) or not layers:
            return None
        gate = [f"gating.layers.{layer}.{part}" for layer in layers for part in ("weight", "bias")]
        names = (_REGRESSION, _TRANSFORM, _SCALE, *gate)
        optional = f"gating.layers.{layers[-1]}.bias"
        if any(name not in stored.shapes for name in names if name != optional):
            return None
        n = stored.shapes[_REGRESSION][0]
        if list(stored.shapes[_TRANSFORM]) != [n, n] or stored.shapes[f"gating.layers.{layers[-1]}.weight"][0] != n:
            return None
        temperature = float(getattr(stored.config, "gating_temperature", _TEMPERATURE))
        taken = tuple(name for name in names if name in stored.shapes)
        return FoundHead(self.name, taken, 1, partial(_make, len(layers), temperature), reads_prompt=True)


def _is_gate(name: str) -> bool:
    parts = name.split(".")
    return parts[:2] == ["gating", "layers"] and len(parts) == 4 and parts[2].isdigit()


def _make(n_layers: int, temperature: float, tensors: Mapping[str, Tensor]) -> nn.Module:
    from torch import nn

    class Gated(nn.Module):
        """States of last tokens and of prompts, both [n, hidden], to scores [n, 1]."""

        def __init__(self) -> None:
            super().__init__()
            self.regression = make_linear(tensors[_REGRESSION], None)
            layers: list[nn.Module] = []
            for i in range(n_layers):
                name = f"gating.layers.{i}"
                layers += [make_linear(tensors[f"{name}.weight"], tensors.get(f"{name}.bias")), nn.ReLU()]
            self.gate = nn.Sequential(*layers[:-1])
            self.transform = nn.Parameter(tensors[_TRANSFORM], requires_grad=False)
            self.scale = nn.Parameter(tensors[_SCALE], requires_grad=False)

        def forward(self, states: Tensor, prompts: Tensor) -> Tensor:
            rewards = self.regression(states) @ self.transform
            weights = (self.gate(prompts) / temperature).softmax(-1) * self.scale
            scores: Tensor = (rewards * weights).sum(-1, keepdim=True)
            return scores

    return Gated()


KIND = GatedKind()

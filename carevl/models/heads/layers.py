"""Linear layers with an activation between them, numbered as in a `Sequential`: `score.0`, `score.2`.

ReLU stands between those of Qwen2.5-Math-RM (`Qwen2ForRewardModel`; Qwen's `modeling_qwen2_rm.py`), of INF-ORM
(`INFORMForSequenceClassification`; its model card) and of GRM, whose layers are `v_head.summary.0`, … (`ValueHead` in
`grm_utils.py` of YangRui2015/Generalizable-Reward-Model: with `vhead_layer_type` mlp, ReLU after every layer but the
last). No file stores an activation, so of any other model settings have to name it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from carevl.errors import UserError
from carevl.models.heads.base import FoundHead, HeadKind, HeadTensors
from carevl.models.heads.linear import make_linear

if TYPE_CHECKING:
    from torch import Tensor, nn

_RELU = {"Qwen2ForRewardModel", "Qwen2ForProcessRewardModel", "INFORMForSequenceClassification"}
"""Architectures whose published code has ReLU between the layers of its head."""
_GRM = "v_head.summary"


class LayersKind(HeadKind):
    """Two or more matrices, the first as wide as a hidden state, each as wide as the one before is high."""

    name = "layers"

    def find(self, stored: HeadTensors) -> FoundHead | None:
        """Return the numbered layers of one module.

        Raises:
            UserError: nothing says which activation stands between them.
        """
        numbered = [match for name in stored.shapes if (match := re.fullmatch(r"(.+)\.(\d+)\.weight", name))]
        if len(numbered) < 2 or len({match[1] for match in numbered}) != 1:
            return None
        stem, numbers = numbered[0][1], sorted(int(match[2]) for match in numbered)
        shapes = [list(stored.shapes[f"{stem}.{number}.weight"]) for number in numbers]
        widths = [stored.hidden, *(shape[0] for shape in shapes)]
        if any(len(shape) != 2 or shape[1] != width for shape, width in zip(shapes, widths, strict=False)):
            return None
        names = [f"{stem}.{number}.{part}" for number in numbers for part in ("weight", "bias")]
        activation = stored.activation or _known_activation(stem, numbers, stored.config)
        if activation is None:
            layers = ", ".join(f"{stem}.{number}" for number in numbers)
            raise UserError(
                f"its head has several layers ({layers}), and no file says which activation stands between them; set "
                "activation: relu, or what the model's own code has"
            )
        taken = tuple(name for name in names if name in stored.shapes)
        return FoundHead(self.name, taken, widths[-1], partial(_make, stem, numbers, activation))


def _known_activation(stem: str, numbers: Sequence[int], config: Any) -> str | None:
    if any(second - first != 2 for first, second in pairwise(numbers)):
        return None  # something else lies between them, or nothing
    is_known = stem == _GRM or _RELU & {*(getattr(config, "architectures", None) or ())}
    return "relu" if is_known else None


def _make(stem: str, numbers: Sequence[int], activation: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    from torch import nn

    between = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}[activation]
    modules: list[nn.Module] = []
    for number in numbers:
        modules += [make_linear(tensors[f"{stem}.{number}.weight"], tensors.get(f"{stem}.{number}.bias")), between()]
    return nn.Sequential(*modules[:-1])


KIND = LayersKind()

"""A score of several outputs: the one, the weighting or the expectation that settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from carevl.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from carevl.models.heads.base import Output


def check_output(n_outputs: int, output: Output | None) -> None:
    """Refuse settings that do not say which of several outputs is the score, or name one that there is not.

    Raises:
        UserError: without the model's path.
    """
    if output is None:
        if n_outputs > 1:
            raise UserError(
                f"its head has {n_outputs} outputs, and a score is one number; set output to the number of one "
                f"(0 to {n_outputs - 1}), to {n_outputs} weights (with two labels, [-1, 1] is the difference of their "
                "logits), or to expected (ratings from 1)"
            )
    elif isinstance(output, tuple):
        if len(output) != n_outputs:
            raise UserError(f"output has {len(output)} weights, and its head {n_outputs} outputs; give one for each")
    elif n_outputs == 1 and output != 0:
        raise UserError(f"output is {output}, and its head has one output; leave output out")
    elif output == "expected":
        return
    elif not 0 <= output < n_outputs:
        raise UserError(f"output is {output}, and its head has the outputs 0 to {n_outputs - 1}")


def choose_score(values: Tensor, output: Output | None) -> Tensor:
    """Return float32 [n]: the scores of raw outputs [n, outputs].

    `expected` is the mean of the ratings 1, 2, … under the softmax of the outputs.
    """
    import torch

    values = values.float()
    if output == "expected":
        ratings = torch.arange(1, values.shape[1] + 1, dtype=values.dtype, device=values.device)
        return values.softmax(-1) @ ratings
    if isinstance(output, tuple):
        return values @ torch.tensor(output, dtype=values.dtype, device=values.device)
    return values[:, output or 0]

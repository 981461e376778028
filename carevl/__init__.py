"""CAREVL: vision-language judges from image preference data, without human labels."""

import logging
from typing import TYPE_CHECKING, Any

from carevl import _torchvision

if TYPE_CHECKING:
    from carevl.reward_model import Judgment, Ranking, RewardModel

__version__ = "0.1.0"
__all__ = ["Judgment", "Ranking", "RewardModel"]

_torchvision.install()
# PEFT imports it wherever it is installed: it warns of a kernel for some CPUs, and of every rounded product in 8 bits.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """What users import loads only when it is asked for, so that the command line starts at once."""
    if name in __all__:
        from carevl import reward_model

        return getattr(reward_model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

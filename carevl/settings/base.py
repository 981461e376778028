"""The base of every group of settings: strict, frozen, each field with its description."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

HomePath = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path in which `~` stands for the home directory."""


class Strict(BaseModel):
    """A group of settings; an unknown field is an error, and no field changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

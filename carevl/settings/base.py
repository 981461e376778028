"""The base of every group of settings: strict, frozen, each field with its description."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from carevl.errors import UserError

HomePath = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path in which `~` stands for the home directory."""


class SettingsError(UserError):
    """A setting that cannot be used."""


class Strict(BaseModel):
    """A group of settings; an unknown field is an error, and no field changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

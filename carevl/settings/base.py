"""The base of every group of settings: strict, frozen, each field with its description."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from carevl.errors import has_password
from carevl.settings.names import check_path_component


def _without_password(address: str) -> str:
    if has_password(address):
        raise ValueError(
            "it holds a user or a password, which would be stored with the settings; leave it out, and give it by the "
            "environment (a key by api_key_env or CAREVL_API_KEY, a bucket's as its provider says)"
        )
    return address


Address = Annotated[str, AfterValidator(_without_password)]
"""An address, which is stored as it is written: it holds no password."""
HomePath = Annotated[str, AfterValidator(_without_password), AfterValidator(os.path.expanduser)]
"""A path or an address; `~` stands for the home directory."""
PathName = Annotated[str, AfterValidator(check_path_component)]
"""A name that becomes a file or directory."""


class Strict(BaseModel):
    """A group of settings; an unknown field is an error, and no field changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

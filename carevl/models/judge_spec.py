"""What a judge's directory tells those who use it, besides weights and processor: `carevl.json`.

Training writes it; what serves the judge, evaluates it or trains it further reads it. A directory without one, such as
that of a model from the hub, has the defaults.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import Field, ValidationError

from carevl.errors import UserError
from carevl.models.locate import model_directory
from carevl.settings.asking import Asking
from carevl.settings.base import Strict
from carevl.store.table import write_atomically

if TYPE_CHECKING:
    from carevl.settings.models import Judge

FILE = "carevl.json"


class JudgeSpec(Strict):
    """How a judge was trained, as far as its users have to do the same."""

    resize_pixels: int | None = Field(None, ge=1, description="Larger images were resized to so many pixels.")
    asking: Asking = Field(Asking(), description="How it was asked.")

    @classmethod
    def of(cls, judge: Judge) -> Self:
        """Return the specification of the judge that the settings name: its adapter's, or else its weights'.

        Raises:
            UserError: the file cannot be used; and as `ensure_local`, by which a hub model is fetched.
        """
        return cls.read(Path(judge.adapter or model_directory(judge)))

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Return the specification in a directory; the defaults where there is none.

        Raises:
            UserError: the file cannot be used.
        """
        file = directory / FILE
        if not file.is_file():
            return cls()
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError as error:
            [first, *_] = error.errors()
            field = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{file}: {field + ': ' if field else ''}{first['msg']}; it was damaged, or written by a later version"
            ) from None

    def write(self, directory: Path) -> None:
        """Write the specification into a directory, unless that says the same: defaults need no file."""
        if self != self.read(directory):
            write_atomically(directory / FILE, self.model_dump_json(exclude_defaults=True, indent=2).encode())


def asking_of(judge: Judge) -> Asking:
    """Return how a judge is asked: as its settings say, or else as it was trained; errors as for `JudgeSpec.of`."""
    return JudgeSpec.of(judge).asking if judge.asking is None else judge.asking

"""Python code that comes with a model: it runs where the settings say so, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from carevl.errors import UserError
from carevl.models.row_errors import first_line, is_lost, is_out_of_memory

if TYPE_CHECKING:
    from carevl.settings.models import Model

_trusted: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trust_own_code(trusted: bool) -> Iterator[None]:
    """Let models that are loaded inside run code of their own, or not."""
    token = _trusted.set(trusted)
    try:
        yield
    finally:
        _trusted.reset(token)


def is_code_trusted() -> bool:
    """Return whether models may run code of their own here."""
    return _trusted.get()


def code_arguments() -> dict[str, bool]:
    """Return what every `from_pretrained` takes: said either way, transformers asks nobody at the terminal."""
    return {"trust_remote_code": _trusted.get()}


def explain_refusal(directory: str | Path, error: Exception, setting: str = "judge.trust_remote_code") -> str | None:
    """Return a sentence for an error of a library that advises to trust a model's code; None for another one."""
    if "trust_remote_code" not in str(error):
        return None
    return (
        f"{directory} needs Python code that comes with it, which is not run; set {setting}: true if you trust whoever "
        "wrote it"
    )


@contextmanager
def explain_loading(path: str | Path, setting: str = "judge.trust_remote_code") -> Iterator[None]:
    """Say in a sentence why a model cannot be loaded: it needs code of its own, or a file of it is not what it was.

    What the machine lacks, such as memory, is raised as it is.

    Args:
        path: of the model, as in the settings.
        setting: that would trust its code.

    Raises:
        UserError: the block has raised something else.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        of_machine = isinstance(error, OSError) and error.errno is not None
        if of_machine or is_out_of_memory(error) or is_lost(error):
            raise
        if (refusal := explain_refusal(path, error, setting)) is not None:
            raise UserError(refusal) from None
        raise UserError(
            f"{path} cannot be loaded ({first_line(error)}); if a file of it is not whole, fetch or write it anew"
        ) from error


def explain_loading_of(model: Model) -> AbstractContextManager[None]:
    """Do as `explain_loading`, of a model in the settings."""
    return explain_loading(model.path, _setting(model))


def check_own_code(model: Model, directory: Path) -> None:
    """Refuse a model whose configuration needs code that the settings do not trust.

    Raises:
        UserError: it does, or transformers refuses it for another reason.
    """
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(directory, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # of any kind, by what it stumbles over
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            explain_refusal(model.path, error, _setting(model))
            or f"{directory / 'config.json'} is refused by transformers: {reason}"
        ) from None


def _setting(model: Model) -> str:
    name = getattr(model, "name", None)
    return f"trust_remote_code of expert {name}" if name else f"{type(model).__name__.lower()}.trust_remote_code"

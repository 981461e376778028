"""Python code that comes with a model: it runs where the settings say so, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from carevl.errors import UserError

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
def explain_own_code(model: Model) -> Iterator[None]:
    """Say in a sentence that a model needs code of its own, in place of a library's advice to run it.

    Raises:
        UserError: the block has raised such an error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        refusal = explain_refusal(model.path, error, _setting(model))
        if refusal is None:
            raise
        raise UserError(refusal) from None


def check_own_code(model: Model, directory: Path) -> None:
    """Refuse a model whose configuration needs code that the settings do not trust.

    Raises:
        UserError: it does, or transformers refuses it for another reason.
    """
    from transformers import AutoConfig

    try:
        with explain_own_code(model):
            AutoConfig.from_pretrained(directory, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{directory / 'config.json'} is refused by transformers: {reason}") from None


def _setting(model: Model) -> str:
    name = getattr(model, "name", None)
    return f"trust_remote_code of expert {name}" if name else f"{type(model).__name__.lower()}.trust_remote_code"

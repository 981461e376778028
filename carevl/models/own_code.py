"""Python code that comes with a model: it runs where the settings say so, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

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


def explain_refusal(directory: Path, error: Exception) -> str | None:
    """Return a sentence for an error of transformers that advises to trust a model's code; None for another one."""
    if "trust_remote_code" not in str(error):
        return None
    return (
        f"{directory} needs Python code that comes with it, which is not run; set judge.trust_remote_code: true if you "
        "trust whoever wrote it"
    )

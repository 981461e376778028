"""LoRA adapters on disk, and the base that each belongs to.

PEFT names the base in `adapter_config.json`, as it was called where the adapter was trained. Training here also keeps
`base.json`, the fingerprint of the base's weights, which holds wherever they lie.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carevl.errors import UserError
from carevl.models.locate import locate_adapter, model_directory, weights_fingerprint
from carevl.models.own_code import explain_loading, explain_loading_of
from carevl.models.stored_weights import tensor_shapes
from carevl.store.damage import read_json

if TYPE_CHECKING:
    from carevl.settings.models import Judge

_BASE, _CONFIG = "base.json", "adapter_config.json"
_WAY_OUT = "copy the adapter again"
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_SNAPSHOT = re.compile(r"models--(?:.+--)?(.+?)/snapshots/[0-9a-f]+")
"""Of a path in the cache of huggingface_hub: the model's name."""


def write_base(adapter: Path, fingerprint: str) -> None:
    """Keep beside an adapter the fingerprint of the weights that it was trained on."""
    (adapter / _BASE).write_text(json.dumps({"fingerprint": fingerprint}))


def read_base(adapter: Path) -> str | None:
    """Return the fingerprint of the weights that an adapter was trained on; None where nothing says it."""
    file = adapter / _BASE
    return str(read_json(file, _WAY_OUT).get("fingerprint")) if file.is_file() else None


def check_adapter(judge: Judge) -> None:
    """Refuse a judge whose adapter belongs to another base; nothing of a judge without one.

    Fingerprints are compared where both are of the same kind, names otherwise, and shapes at last. The judge's weights
    have to be on this machine.

    Raises:
        UserError: it does, or it is no adapter.
    """
    if judge.adapter is None:
        return
    adapter = locate_adapter(judge.adapter)
    stored, own = read_base(adapter), weights_fingerprint(judge.path, judge.revision)
    if stored is not None and ("@" in stored) == ("@" in own):
        if stored != own:
            raise UserError(
                f"{adapter} was trained on other weights ({stored}) than those of {judge.path} ({own}); give the base "
                f"that it was trained on, {_named_base(adapter) or 'whatever its name'}"
            )
    else:
        _check_name(adapter, judge)
    with explain_loading(adapter):
        shapes = tensor_shapes(adapter)
    with explain_loading_of(judge):
        problems = list(_misfits(shapes, Path(model_directory(judge)), judge.trust_remote_code))
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UserError(f"{adapter} does not fit {judge.path}: {problems[0]}{more}; give the base that it belongs to")


def put_on(model: Any, adapter: Path, **options: Any) -> Any:
    """Put an adapter on a model; return PEFT's wrapper.

    Raises:
        UserError: it does not fit the model, or leaves weights of its own without numbers.
    """
    from peft import PeftModel

    with explain_loading(adapter), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            return PeftModel.from_pretrained(model, adapter, **options)
        except (RuntimeError, ValueError, UserWarning) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{adapter} does not fit the model that it is put on: {reason}") from None


def _check_name(adapter: Path, judge: Judge) -> None:
    name, directory = _named_base(adapter), Path(model_directory(judge))
    if not name or (Path(name).is_dir() and Path(name).samefile(directory)):
        return
    if _last_part(name) not in (_last_part(judge.path), _last_part(str(directory.resolve()))):
        raise UserError(
            f"{adapter / _CONFIG} says that it is an adapter of {name}, and the judge is {judge.path}; give that base, "
            f"or, if this is it under another name, write {judge.path} there as base_model_name_or_path"
        )


def _named_base(adapter: Path) -> str | None:
    try:
        name = json.loads((adapter / _CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{adapter / _CONFIG} is no configuration of an adapter ({error}); copy it again") from None
    return None if name is None else str(name)


def _last_part(name: str) -> str:
    cached = _SNAPSHOT.search(name)
    return (cached[1] if cached else re.split(r"[/:]", name.rstrip("/"))[-1]).casefold()


def _misfits(shapes: Mapping[str, Sequence[int]], base: Path, trusted: bool) -> Iterator[str]:
    """Yield the linear layers of a base that an adapter changes by matrices of other sizes.

    A layer that goes by another name in this version of transformers is left to PEFT.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(base, trust_remote_code=trusted)
    with torch.device("meta"):
        skeleton = AutoModelForImageTextToText.from_config(config, trust_remote_code=trusted)
    linear = {name: module for name, module in skeleton.named_modules() if isinstance(module, torch.nn.Linear)}
    for name, shape in shapes.items():
        for end, size, found in ((_A, "in_features", shape[-1]), (_B, "out_features", shape[0])):
            module = name.removeprefix(_PREFIX).removesuffix(end)
            expected = getattr(linear[module], size) if name.endswith(end) and module in linear else found
            if found != expected:
                yield f"{module} has {expected} {size} there, and {found} in the adapter"

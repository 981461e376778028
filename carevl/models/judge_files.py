"""What a judge's directory has to hold: refused with one sentence before anything is paid for, whoever loads it.

The files are read, and the model's modules are made without memory (on the meta device); no weight is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from carevl.errors import UserError
from carevl.models.families import judge_family
from carevl.models.hub import find_config, find_snapshot
from carevl.models.locate import own_directory
from carevl.models.own_code import code_arguments, explain_refusal, is_code_trusted, trust_own_code
from carevl.models.prompts import check_tokenizer
from carevl.models.stored_weights import indexed_files, tensor_names, tensor_shapes
from carevl.settings.schemes import split_scheme

ADAPTER = "adapter_config.json"
_OF_PEFT = (".lora_A.", ".lora_B.", ".lora_embedding_", ".base_layer.", "base_model.model.")
"""What names of tensors hold that PEFT has stored, or a wrapper of PEFT that was not unwrapped."""
_OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.gguf")


def check_judge(path: str, revision: str | None = None, *, code: bool = False) -> None:
    """Refuse a model that cannot be trained and asked as a judge.

    A hub model that does not lie whole on this machine is not fetched; of it nothing is told but its architecture.

    Args:
        path: as in the settings: a directory, a hub id, or a path with a scheme.
        code: whether Python code that comes with it may run.

    Raises:
        UserError: a sentence: what the directory lacks or has too much of, and what to do.
    """
    judge_family(path, revision)
    directory = own_directory(path) or find_snapshot(path, revision, code=code)
    if directory is not None:
        with trust_own_code(code):
            check_directory(directory)


def find_judge(path: str, revision: str | None = None) -> tuple[Path, bool]:
    """Return the directory of a model on this machine, and whether its weights are in it; nothing is fetched.

    Args:
        path: as for `check_judge`.

    Raises:
        UserError: not even its configuration is here.
    """
    split = split_scheme(path)
    directory = Path(path) if split is None else split[0].model(split[1])
    if directory.is_dir():
        return directory, has_weights(directory)
    if (snapshot := find_snapshot(path, revision)) is not None:
        return snapshot, True
    if (config := find_config(path, revision)) is not None:
        return config.parent, False
    raise UserError(f"{path}: there is no such directory, and no hub model of that id is on this machine")


def check_directory(directory: Path, *, weights: bool = True) -> None:
    """Refuse a directory that holds no judge.

    Args:
        weights: whether its weights have to be there.

    Raises:
        UserError: as `check_judge`.
    """
    if "model_type" not in _read_json(directory / "config.json"):
        raise UserError(f"{directory / 'config.json'} names no model_type: it is no configuration of a model")
    trusted = is_code_trusted()
    _check_architecture(directory, trusted)
    if (directory / ADAPTER).is_file():
        raise UserError(
            f"{directory} carries an adapter ({ADAPTER}), which would be loaded into the judge unseen; merge it first, "
            "or move its files to a directory of their own"
        )
    if weights:
        _check_weight_files(directory)
    _check_reader(directory)
    _load_reader(directory, trusted)
    if weights:
        _check_tensors(directory, trusted)


def has_weights(directory: Path) -> bool:
    """Return whether a directory holds weights, in whatever format."""
    return any(file for pattern in ("*.safetensors", *_OTHER_FORMATS) for file in directory.glob(pattern))


def _check_weight_files(directory: Path) -> None:
    if not any(directory.glob("*.safetensors")):
        others = [file.name for pattern in _OTHER_FORMATS for file in sorted(directory.glob(pattern))]
        stored = f", only {others[0]}" if others else ""
        raise UserError(f"{directory} has no safetensors weights{stored}; convert them with save_pretrained")
    missing = [file.name for file in indexed_files(directory) or () if not file.is_file()]
    if missing:
        raise UserError(f"{directory} lacks {missing[0]}, which its index of weights names; copy the model again")
    try:
        names = tensor_names(directory)
    except (ValueError, OSError) as error:
        raise UserError(f"{directory}: a file of its weights is damaged ({error}); copy the model again") from None
    if adapted := [name for name in names if any(mark in name for mark in _OF_PEFT)]:
        raise UserError(
            f"{directory} stores weights of adapters ({adapted[0]}); merge them (merge_and_unload) before the model is "
            "saved"
        )


def _check_reader(directory: Path) -> None:
    """Refuse a directory without the files that make a prompt of image and words."""
    if not _has_entry(directory, "chat_template", "chat_template.jinja", "tokenizer_config.json", "chat_template.json"):
        raise UserError(f"{directory} has no chat template; a judge needs its chat_template.jinja")
    if not _has_entry(directory, "image_processor", "preprocessor_config.json", "processor_config.json"):
        raise UserError(f"{directory} has no image processor; a judge needs its preprocessor_config.json")
    if (directory / "tekken.json").is_file() and not (directory / "tokenizer.json").is_file():
        raise UserError(
            f"{directory} has a tokenizer of mistral-common only (tekken.json); a judge needs a tokenizer.json, as "
            "conversions for transformers have it"
        )


def _has_entry(directory: Path, entry: str, own: str, *shared: str) -> bool:
    """Return whether a model directory has a file `own`, or `entry` in one of the JSON files of several things."""
    if (directory / own).is_file():
        return True
    files = [directory / name for name in shared]
    return any(entry in _read_json(file) for file in files if file.is_file())


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); copy the model again") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no JSON object; copy the model again")
    return content


@cache
def _load_reader(directory: Path, trusted: bool) -> None:
    """Load the processor, once in a process."""
    del trusted
    load_processor(directory)


def load_processor(judge: Path) -> Any:
    """Load a judge's processor.

    Raises:
        UserError: the directory has none, or one without images, without a chat template, or with a slow tokenizer.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(judge, **code_arguments())
    except (OSError, ValueError, ImportError, TypeError, KeyError) as error:
        refusal = explain_refusal(judge, error) or f"{judge} has no processor that loads: {_one_line(error)}"
        raise UserError(refusal) from None
    if not hasattr(processor, "image_processor"):
        raise UserError(f"{judge} has a tokenizer but no image processor; a judge needs its preprocessor_config.json")
    if not processor.chat_template:
        raise UserError(f"{judge} has no chat template; a judge needs its chat_template.jinja")
    check_tokenizer(processor.tokenizer, str(judge))
    return processor


@cache
def _check_architecture(directory: Path, trusted: bool) -> None:
    """Refuse a configuration that transformers does not know, or of a model that does not read images."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig

    kind = _read_json(directory / "config.json")["model_type"]
    try:
        config = AutoConfig.from_pretrained(directory, **code_arguments())
    except Exception as error:  # each architecture checks its fields in its own way
        refusal = f"{directory / 'config.json'} is refused by transformers: {_one_line(error)}"
        raise UserError(explain_refusal(directory, error) or refusal) from None
    has_code = trusted and "AutoModelForImageTextToText" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not has_code:
        raise UserError(
            f"{directory} is a {kind} model, which does not read images; a judge is a vision-language model"
        )


@cache
def _check_tensors(directory: Path, trusted: bool) -> None:
    """Compare the names and shapes of the stored tensors with those of the model that the configuration describes.

    transformers would fill in what is missing with random numbers.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    del trusted
    config = AutoConfig.from_pretrained(directory, **code_arguments())
    # transformers opens a file by mapping it, which the system refuses for one that is larger than its memory.
    stored = {name: torch.empty(shape, device="meta") for name, shape in tensor_shapes(directory).items()}
    try:
        with quiet_transformers():
            with torch.device("meta"):
                model = AutoModelForImageTextToText.from_config(config, **code_arguments())
            _, loaded = type(model).from_pretrained(
                None,
                config=config,
                state_dict=stored,
                device_map={"": "meta"},
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # whatever an architecture makes of a configuration that it cannot build
        raise UserError(f"{directory}: its model cannot be built: {_one_line(error)}") from None
    problems = [f"{name} is not stored" for name in sorted(loaded["missing_keys"])]
    problems += [
        f"{name} is stored as {list(shape)}, not {list(expected)}"
        for name, shape, expected in sorted(loaded["mismatched_keys"])
    ]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UserError(
            f"{directory} holds the weights of another architecture than its config.json describes: {problems[0]}{more}"
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Let transformers load a model without bars and warnings: what matters is said in other words."""
    from transformers.utils import logging

    shown, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(shown)
        if bar:
            logging.enable_progress_bar()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

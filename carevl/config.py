"""Settings: one strict tree, every field documented; a preset or a YAML file fills it.

The descriptions here are the reference; `carevl settings` prints them beside the resolved values.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from carevl.confidence.policies import RouterSettings
from carevl.errors import UserError
from carevl.training.settings import Training

_Tree = TypeVar("_Tree", bound=BaseModel)
PRESETS = Path(__file__).parent / "presets"
HomePath = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path in which `~` stands for the home directory."""


class SettingsError(UserError):
    """A setting that cannot be used."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Pool(_Strict):
    """An actor pool of Ray Data."""

    concurrency: int | str = Field(
        1,
        description="Actors: a number; `min..max` to scale with the load; `auto`: as many as fit on the cluster, "
        "shared among pools at work together so that they finish together, by measured speed.",
    )
    num_cpus: float = Field(1.0, ge=0, description="CPUs that each actor reserves.")
    num_gpus: float = Field(0.0, ge=0, description="GPUs that each actor reserves; fractions share a GPU.")
    resources: dict[str, float] = Field({}, description="Custom Ray resources that each actor reserves.")
    batch_size: int = Field(64, ge=1, description="Rows that an engine is handed at a time.")
    preparers: int = Field(
        0,
        ge=0,
        description="Actors of one CPU each that read rows, decode images and tokenise ahead of the engines, if they "
        "find room beside them; 0: the engines' own actors do it, in turns with the engine.",
    )

    @field_validator("concurrency")
    @classmethod
    def _range(cls, value: int | str) -> int | str:
        low, high = _bounds(value)
        if not 1 <= low <= high:
            raise ValueError(f"{value!r} is no number of actors; write 4, 1..8 to scale, or auto")
        return value

    @property
    def auto(self) -> bool:
        """Whether the number of actors is chosen when the pool starts."""
        return self.concurrency == "auto"

    @property
    def bounds(self) -> tuple[int, int]:
        """Fewest and most actors; with `auto`, one and as many as fit."""
        return _bounds(self.concurrency)


def _bounds(value: int | str) -> tuple[int, int]:
    if value == "auto":
        return 1, sys.maxsize
    match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", str(value))
    return (int(match[1]), int(match[2] or match[1])) if match else (0, 0)


class Model(_Strict):
    """A model, the engine that runs it, and the pool of actors that holds it."""

    path: HomePath = Field(description="Hugging Face directory or hub id; `miniworld:NAME` is a shipped model.")
    revision: str | None = Field(None, description="Commit of a hub model; pin it, so that a run can be repeated.")
    engine: Literal["vllm", "transformers"] = Field(
        "vllm", description="vllm for throughput; transformers gives the same texts whatever the batch."
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field("auto", description="Format of the numbers.")
    max_model_len: int = Field(4096, ge=16, description="Most tokens of prompt and answer together.")
    tensor_parallel: int = Field(
        1, ge=1, description="On vllm: GPUs of one node that an engine is spread over; pool.num_gpus is as many."
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")
    pool: Pool = Field(Pool(), description="The actors that hold it.")

    @model_validator(mode="after")
    def _uses_its_gpus(self) -> Self:
        spread, reserved = self.tensor_parallel, self.pool.num_gpus
        if spread > 1 and self.engine != "vllm":
            raise ValueError(f"tensor_parallel: {spread} needs engine: vllm")
        if spread > 1 and reserved not in (0, spread):  # without GPUs an engine is spread over processes
            raise ValueError(f"tensor_parallel: {spread} uses {spread} GPUs, but pool.num_gpus reserves {reserved:g}")
        if spread == 1 and reserved > 1:
            raise ValueError(f"pool.num_gpus reserves {reserved:g} GPUs, but an engine uses one; set tensor_parallel")
        return self


class Captioner(Model):
    """The model that describes every distinct image once."""

    prompt: str = Field(
        "Describe this image in detail: every object with its number, colour, size and place, and all text.",
        description="What the captioner is asked.",
    )
    max_tokens: int = Field(512, ge=1, description="Longest caption, in tokens.")


class Endpoint(_Strict):
    """An OpenAI-compatible service that judges texts; captions, questions and responses are sent to it."""

    url: str = Field(description="Its base address, such as http://127.0.0.1:8000/v1.", pattern=r"^https?://")
    api_key_env: str | None = Field(
        None, description="Environment variable that holds its key; none is sent if absent."
    )
    timeout: float = Field(60.0, gt=0, description="Seconds that an answer may take.")
    retries: int = Field(5, ge=0, description="Failed requests of a row that are tried again, with growing pauses.")
    concurrency: int = Field(8, ge=1, description="Rows that are asked about at a time, by each actor.")


class Expert(Model):
    """A text reward model that scores caption + question + response."""

    name: str = Field(description="Its name in tables and reports.", pattern=r"^[A-Za-z0-9._-]+$")
    kind: Literal["reward_model", "endpoint", "python"] = Field(
        "reward_model",
        description="reward_model; endpoint: `path` is the model's name there; python: `path` is package.module:Class.",
    )
    endpoint: Endpoint | None = Field(None, description="Where the judge of kind endpoint is asked.")
    batch_tokens: int = Field(
        8192, ge=1, description="Tokens that run at a time on transformers; halved by an actor that runs out of memory."
    )
    parity_tolerance: float | None = Field(
        0.05,
        gt=0,
        description="On vllm: largest difference from transformers' scores on a sample, as a share of their size, "
        "checked when an actor starts; null: no check.",
    )
    template: str = Field(
        "Image description: {caption}\n\n{question}",
        description="The user turn; {caption} and {question} are filled in.",
    )

    too_long: Literal["error", "summarise"] = Field(
        "error",
        description="Inputs of more tokens than the expert reads: error marks the row; summarise leaves out the "
        "caption's last sentences, as few as are enough, and the row says what share of the caption was read.",
    )

    def write(self, caption: str | None, question: str) -> str:
        """The user turn; the bare question without a caption."""
        return question if caption is None else self.template.format(caption=caption, question=question)

    @model_validator(mode="after")
    def _has_endpoint(self) -> Self:
        if (self.kind == "endpoint") != (self.endpoint is not None):
            raise ValueError("kind: endpoint and the settings under endpoint belong together; give both or neither")
        return self


class Judge(Model):
    """The vision-language model that becomes the judge."""

    max_tokens: int = Field(256, ge=1, description="Longest judgment, in tokens.")
    adapter: HomePath | None = Field(
        None,
        description="Directory of a LoRA adapter (PEFT) that is loaded on top of `path`, not merged; not in a run, "
        "which begins with whole weights.",
    )
    serve: Literal["merged", "adapter"] = Field(
        "merged",
        description="How a run loads the judges that it trained with LoRA: merged, or as an adapter on what the phase "
        "began with, which on a CPU is several times slower.",
    )


class Demonstrate(_Strict):
    """Targets of phase 1: the base judge's own judgments where they hold in both orders."""

    samples: int = Field(4, ge=1, description="Judgments that the base judge writes per prompt, to choose from.")
    temperature: float = Field(1.0, ge=0, description="Of those judgments; 0 is greedy.")
    pointwise_share: float = Field(
        0.25, ge=0, le=1, description="Share of the items whose responses are also rated one by one."
    )
    ranking_share: float = Field(
        1.0, ge=0, le=1, description="Share of the items with more than two responses that are also ranked."
    )
    verdict_only_share: float = Field(
        0.0, ge=0, lt=1, description="Share of the targets that are a bare verdict; items without a judgment first."
    )


class Sample(_Strict):
    """Judgments of low-confidence items by the phase-1 judge."""

    samples: int = Field(8, ge=2, description="Judgments per pair and order.")
    temperature: float = Field(1.0, gt=0, description="Of those judgments.")
    answers: bool = Field(
        False, description="Also ask the bare question of each item, as often: needed for select.answer_weight."
    )


class Select(_Strict):
    """Chosen and rejected judgments for phase 2."""

    consistency_weight: float = Field(
        1.0, ge=0, description="Weight of the share of a pair's judgments, in both orders, that agree with a verdict."
    )
    expert_weight: float = Field(0.5, ge=0, description="Weight of the probability that the experts give a verdict.")
    evidence_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of how much more of a verdict's response than of the other one stands in the evidence that "
        "the judge gives most often: a judge can see well and compare badly.",
    )
    answer_weight: float = Field(
        0.0,
        ge=0,
        description="The same with the judge's own answer to the bare question, which no response has led on; that "
        "judgment is then chosen whose evidence is most like this answer. Needs sample.answers.",
    )
    min_gap: float = Field(0.3, ge=0, description="Least difference of the scores of chosen and rejected.")
    same_evidence: bool = Field(
        False,
        description="One pair in each order, of a judgment and the same with the other verdict, so that the two differ "
        "in the verdict alone and phase 2 holds nothing against evidence; where no judgment of this order has the "
        "better verdict, one of the other order is taken. pairs_per_order and max_length_ratio then change nothing.",
    )
    pairs_per_order: int = Field(1, ge=1, description="Most chosen-rejected pairs of one prompt.")
    balance: bool = Field(True, description="As many chosen verdicts for the first answer shown as for the second.")
    max_length_ratio: float = Field(
        2.0, ge=1, description="The longer of chosen and rejected has at most so many times the other's characters."
    )


class Benchmark(_Strict):
    """A labelled test of judges."""

    name: str = Field(description="Id of the benchmark, such as vl-rewardbench; `carevl evaluate --help` lists them.")
    path: HomePath = Field(description="Its development data; `miniworld:FILE` is drawn.")
    images: HomePath | None = Field(None, description="Directory of its images when they lie apart.")
    final_path: HomePath | None = Field(None, description="Its test data, used by `carevl run --final` only.")
    final_images: HomePath | None = Field(None, description="Directory of the images of its test data.")
    protocols: list[Literal["official", "official_scorer", "strict", "verdict_prob"]] = Field(
        ["official_scorer", "strict"], description="How judges are asked."
    )
    draws: int = Field(1, ge=1, description="Judgments per row where the protocol draws several.")
    rows: int | None = Field(None, ge=1, description="Use the first rows only; all when absent.")


class Source(_Strict):
    """Preference data on disk."""

    path: HomePath = Field(description="File or directory, local or `s3://…`, `gs://…`; `miniworld:FILE` is drawn.")
    name: str | None = Field(None, description="Its name in tables; source-0, source-1, … when absent.")
    format: str | None = Field(None, description="Name of the format; found from the columns when absent.")
    labels: bool = Field(False, description="Its preference is true: it calibrates experts and router.")
    split: str = Field("train", description="Split that its items belong to.")
    weight: float = Field(1.0, gt=0, description="How often its rows are drawn, relative to other sources.")
    image_root: HomePath | None = Field(None, description="Directory that relative image paths are looked up in.")
    captions: str | None = Field(None, description="JSON file of image name to caption (LLaVA-RLHF).")


class Data(_Strict):
    """What is read."""

    sources: list[Source] = Field(min_length=1, description="Preference data; their own preference is not used.")
    parts: int = Field(
        16,
        ge=1,
        description="Parts of every table: the unit of work, of commit and of resume. One over 128 MB is divided.",
    )
    max_image_pixels: int = Field(50_000_000, ge=1, description="Images with more pixels are row errors.")
    allow_url_fetch: bool = Field(False, description="Fetch images from http(s) addresses named in the data.")
    decontaminate: bool = Field(True, description="Set rows aside that share their image with a benchmark.")
    near_duplicates: Literal["report", "merge", "ignore"] = Field(
        "report", description="Images that look alike: counted in the manifest, made one, or not searched for."
    )


class Miniworld(_Strict):
    """The drawn world, for sources whose path begins with `miniworld:`."""

    items: int = Field(640, ge=1, description="Training items to draw.")
    calibration_images: int = Field(3000, ge=1, description="Labelled images to draw.")
    seed: int = Field(7, description="Seed of the drawing.")


class Cluster(_Strict):
    """Where Ray runs."""

    address: str | None = Field(None, description="Address of a running cluster; a local one is started when absent.")
    num_cpus: int | None = Field(None, ge=1, description="CPUs of a local Ray; those of the machine when absent.")
    launcher: HomePath | None = Field(
        None, description="Cluster launcher file: nodes that Ray may still start by it count as there."
    )


class Settings(_Strict):
    """Everything that a run depends on."""

    seed: int = Field(0, description="Seed of every random choice.")
    items: int | None = Field(None, ge=1, description="Most rows to read of the sources without labels; all if absent.")
    max_error_fraction: float = Field(
        0.05, ge=0, le=1, description="Share of rows that may fail in a stage before the run stops."
    )
    data: Data = Field(description="What is read.")
    captioner: Captioner = Field(description="The model that describes every distinct image once.")
    experts: list[Expert] = Field(min_length=1, description="Text reward models; different kinds help most.")
    router: RouterSettings = Field(RouterSettings(), description="How labels are trusted or not.")
    judge: Judge = Field(description="The vision-language model that becomes the judge.")
    demonstrate: Demonstrate = Field(Demonstrate(), description="Targets of phase 1.")
    sft: Training = Field(Training(), description="Phase 1: the judge imitates the targets.")
    sample: Sample = Field(Sample(), description="Judgments of low-confidence items.")
    select: Select = Field(Select(), description="Chosen and rejected judgments.")
    dpo: Training = Field(Training(learning_rate=5e-6), description="Phase 2: the judge prefers chosen to rejected.")
    benchmarks: list[Benchmark] = Field([], description="What base, phase-1 and phase-2 judge are evaluated on.")
    miniworld: Miniworld = Field(Miniworld(), description="The drawn world.")
    cluster: Cluster = Field(Cluster(), description="Where Ray runs.")

    @field_validator("judge")
    @classmethod
    def _is_merged(cls, judge: Judge) -> Judge:
        if judge.adapter is not None:
            raise ValueError(
                "a run begins with whole weights; merge the adapter first, and give the merged judge as path"
            )
        return judge

    @field_validator("select")
    @classmethod
    def _has_answers(cls, select: Select, known: ValidationInfo) -> Select:
        sample = known.data.get("sample")
        if select.answer_weight and sample is not None and not sample.answers:
            raise ValueError("answer_weight weighs answers that are not asked for; set sample.answers to true")
        return select


def presets() -> list[str]:
    """Names of the presets."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def load(source: str, overrides: Sequence[str] = ()) -> Settings:
    """Settings from a preset's name or a YAML file, with `key.path=value` overrides.

    Raises:
        SettingsError: no such preset or file, a line that is no YAML, or a field that is unknown or wrong.
    """
    # Mappings that a YAML file shares by anchors become separate, so that an override changes one place only.
    return fill(Settings, json.loads(json.dumps(_read(source), default=str)), overrides)


def fill(kind: type[_Tree], tree: dict[str, Any], overrides: Sequence[str]) -> _Tree:
    """Settings of a kind from a tree of values, with `key.path=value` overrides. Raises SettingsError as `load`."""
    for override in overrides:
        path, found, text = override.partition("=")
        if not found:
            raise SettingsError(f"--set {override}: write key=value, for example --set data.items=64")
        _put(tree, path.split("."), _parse(text, f"--set {path}"))
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(problem, kind) for problem in error.errors())) from None


def _read(source: str) -> dict[str, Any]:
    file = PRESETS / f"{source}.yaml" if source in presets() else Path(source)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        near = difflib.get_close_matches(source, presets(), 1)
        hint = f"did you mean the preset {near[0]}?" if near else f"the presets are {', '.join(presets())}"
        raise SettingsError(f"cannot read settings {source}: {error}; {hint}") from None
    tree = _parse(text, source)
    if not isinstance(tree, dict):
        raise SettingsError(f"{source} holds no settings; see `carevl settings mini`")
    return tree


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{where} is not YAML: {' '.join(str(error).split())}") from None


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    node: Any = tree
    for key in path[:-1]:
        if isinstance(node, list):
            node = _element(node, key, path)
        elif isinstance(node, dict):
            node = node.setdefault(key, {})
    if isinstance(node, dict):
        node[path[-1]] = value
    elif isinstance(node, list):
        _element(node, path[-1], path)
        node[int(path[-1])] = value
    else:
        raise SettingsError(f"--set {'.'.join(path)}: {'.'.join(path[:-1])} is a value and has no fields")


def _element(node: list[Any], key: str, path: list[str]) -> Any:
    if not key.isdigit() or int(key) >= len(node):
        raise SettingsError(f"--set {'.'.join(path)}: {key} is no index of a list of {len(node)}")
    return node[int(key)]


def _explain(problem: Any, kind: type[BaseModel]) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        found = "" if isinstance(problem["input"], dict) else f" (found {problem['input']!r})"
        return f"{place}: {problem['msg'].removeprefix('Value error, ')}{found}"
    *branch, name = problem["loc"]
    names = list(_model_at(branch, kind).model_fields)
    near = difflib.get_close_matches(str(name), names, 1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"the fields here are {', '.join(names)}"
    return f"{place}: there is no such setting; {hint}"


def _model_at(branch: Sequence[Any], model: type[BaseModel]) -> type[BaseModel]:
    for part in branch:
        if isinstance(part, str):
            model = _inner(model.model_fields[part].annotation)
    return model


def _inner(annotation: Any) -> type[BaseModel]:
    arguments = getattr(annotation, "__args__", ())
    return _inner(arguments[0]) if arguments else annotation


def reference(settings: Settings) -> Iterator[str]:
    """The resolved tree as YAML lines, each field with its documentation above it."""
    yield from _document(settings, 0)


def _document(node: BaseModel, depth: int) -> Iterator[str]:
    pad = "  " * depth
    for name, field in type(node).model_fields.items():
        if field.description:
            yield f"{pad}# {field.description}"
        value = getattr(node, name)
        if isinstance(value, BaseModel):
            yield f"{pad}{name}:"
            yield from _document(value, depth + 1)
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            yield f"{pad}{name}:"
            for element in value:
                first, *rest = (line for line in _document(element, 0) if not line.startswith("#"))
                yield f"{pad}- {first}"
                yield from (f"{pad}  {line}" for line in rest)
        else:
            yield f"{pad}{name}: {json.dumps(value, ensure_ascii=False)}"

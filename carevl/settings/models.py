"""Models, the engines that run them, and the actor pools that hold them."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from carevl.settings.asking import Asking
from carevl.settings.base import Address, HomePath, PathName, Strict
from carevl.settings.requests import JudgeRequests, Requests, is_endpoint


class Pool(Strict):
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


SCHEDULING = {
    "async_scheduling",
    "block_size",
    "cpu_offload_gb",
    "cudagraph_capture_sizes",
    "disable_log_stats",
    "distributed_executor_backend",
    "enable_chunked_prefill",
    "enable_prefix_caching",
    "enforce_eager",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "load_format",
    "long_prefill_token_threshold",
    "max_cudagraph_capture_size",
    "max_num_batched_tokens",
    "max_parallel_loading_workers",
    "mm_encoder_tp_mode",
    "mm_processor_cache_gb",
    "scheduling_policy",
    "use_tqdm_on_load",
}
"""Arguments of vLLM's engine that say how much is done at a time and where, not what is computed."""
MAX_IMAGES = 8


class Model(Strict):
    """A model, the engine that runs it, and the pool of actors that holds it."""

    path: HomePath = Field(description="Hugging Face directory or hub id; `miniworld:NAME` is a shipped model.")
    revision: str | None = Field(None, description="Commit of a hub model; pin it, so that a run can be repeated.")
    engine: str = Field(
        "vllm",
        description="vllm for throughput; transformers gives the same texts whatever the batch; or your own, as "
        "package.module:NAME.",
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field("auto", description="Format of the numbers.")
    max_model_len: int = Field(4096, ge=16, description="Most tokens of prompt and answer together.")
    tensor_parallel: int = Field(
        1, ge=1, description="On vllm: GPUs of one node that an engine is spread over; pool.num_gpus is as many."
    )
    max_num_seqs: int | None = Field(
        None,
        ge=1,
        description="On vllm: most texts in flight; null: vLLM's own number on a GPU, pool.batch_size on a CPU.",
    )
    max_image_tiles: int | None = Field(
        None,
        ge=1,
        description="Tiles that an image is cut into at most, by models whose processors do that (InternVL: 12 and the "
        "whole, 256 tokens each, if this is null).",
    )
    engine_args: dict[str, Any] = Field(
        {}, description="On vllm: further arguments of its engine (EngineArgs), such as {quantization: fp8}."
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")
    pool: Pool = Field(Pool(), description="The actors that hold it.")

    @property
    def computation(self) -> dict[str, Any]:
        """What changes a model's numbers, of the settings that are usually left alone; empty if they are.

        Stages add it to their fingerprints. How much an engine does at a time, and where, is left out.
        """
        arguments = {name: value for name, value in self.engine_args.items() if name not in SCHEDULING}
        tiles = {} if self.max_image_tiles is None else {"max_image_tiles": self.max_image_tiles}
        return tiles | ({"engine_args": arguments} if arguments else {})

    @model_validator(mode="after")
    def _uses_its_gpus(self) -> Self:
        spread, reserved = self.tensor_parallel, self.pool.num_gpus
        if self.engine == "transformers" and (self.engine_args or self.max_num_seqs):
            raise ValueError("engine_args and max_num_seqs are for engine: vllm")
        if spread > 1 and self.engine == "transformers":  # a user's own engine may spread
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
    video: Literal["frames", "one"] = Field(
        "frames",
        description="What of a video has a caption: each of its frames, as other images have, or all together.",
    )
    video_prompt: str = Field(
        "These are frames of a video, in their order. Describe in detail what it shows and what happens in it: every "
        "object with its number, colour, size and place, and all text.",
        description="With video: one, what the captioner is asked about all frames of a video.",
    )
    max_frames: int = Field(
        MAX_IMAGES, ge=1, description="With video: one, most frames it is shown at once; no fewer than data.max_images."
    )

    @property
    def max_images(self) -> int:
        """Most images that it is shown at once."""
        return self.max_frames if self.video == "one" else 1


class Endpoint(Requests):
    """An OpenAI-compatible service that judges texts; captions, questions and responses are sent to it."""

    url: Address = Field(description="Its base address, such as http://127.0.0.1:8000/v1.", pattern=r"^https?://")
    api_key_env: str | None = Field(
        None, description="Environment variable that holds its key; none is sent if absent."
    )

    api: Literal["chat", "classify", "pooling", "embeddings"] = Field(
        "chat",
        description="What it is asked for: chat, answers; of a served reward model, scores: classify or pooling, of "
        "vLLM (url is its root, without /v1); embeddings, of SGLang.",
    )
    tokenizer: HomePath | None = Field(
        None,
        description="Directory or hub id of a served reward model's tokenizer: conversations are sent as token ids, so "
        "that no text becomes a control token; null: as messages, which the service writes. embeddings needs it.",
    )

    @property
    def computation(self) -> dict[str, Any]:
        """The same, and what a served reward model is asked."""
        served = {} if self.api == "chat" else {"api": self.api, "tokenizer": self.tokenizer}
        return super().computation | served

    @model_validator(mode="after")
    def _fits_its_api(self) -> Self:
        if self.api == "chat" and "logprobs" in self.omit:
            raise ValueError("omit: logprobs cannot be left out: an expert's score is read from them")
        if self.api == "chat" and self.tokenizer is not None:
            raise ValueError("tokenizer: a chat is sent as messages; it is for api: classify, pooling or embeddings")
        if self.api == "embeddings" and self.tokenizer is None:
            raise ValueError("tokenizer: api: embeddings takes token ids, not messages; name the model's tokenizer")
        return self


class HeadModel(Model):
    """A model that may have a head, and what its files do not say of it."""

    output: int | list[float] | Literal["expected"] | None = Field(
        None,
        description="Of a head with several outputs, what the score is: the number of one, from 0; a weight for each; "
        "or expected, the mean of the ratings 1, 2, … that they are logits of. null: it has one.",
    )
    activation: Literal["relu", "gelu", "silu", "tanh"] | None = Field(
        None,
        description="What stands between the layers of a head of several, which no file says; null: ReLU, of models "
        "that are known to have it.",
    )

    max_images: int = Field(
        MAX_IMAGES,
        ge=1,
        description="Of a model that sees images: most of a prompt; one with more is an error. vLLM keeps room.",
    )

    @property
    def computation(self) -> dict[str, Any]:
        """As for every model, and what is read of the head, where the settings say that."""
        head = {name: value for name in ("output", "activation") if (value := getattr(self, name)) is not None}
        return super().computation | head


_UNQUOTED = BeforeValidator(lambda value: "yes" if value is True else value)
"""YAML reads the word yes as true."""
Scoring = Literal["likelihood", "yes", "pairwise", "head"]
"""How a model that is no text reward model scores responses."""


_TESTIMONY = "{testimony}"


class Expert(HeadModel):
    """A reward model or a language model that scores caption + question + response, or sees the image itself."""

    name: PathName = Field(description="Its name in tables and reports, and of the directory of its scores.")
    kind: str = Field(
        "reward_model",
        description="reward_model; llm: a language model that follows instructions; vlm: a vision-language model, "
        "which sees the image; endpoint: `path` is the model's name there; python: `path` is package.module:Class; or "
        "your own kind, as package.module:NAME.",
    )
    scoring: Annotated[Scoring | None, _UNQUOTED] = Field(
        None,
        description="Of kind llm. likelihood: what the caption adds to the log-probability of a response; yes: log-odds"
        " that it is right; pairwise: log-odds that it is the better one, in both orders of each pair; null: "
        "likelihood, and pairwise at an endpoint. Of kind vlm: head, the score of a vision-language reward model; or "
        "yes, which is null, too.",
    )
    endpoint: Endpoint | None = Field(None, description="Where the model of kind endpoint or llm is asked.")
    batch_tokens: int = Field(
        8192, ge=1, description="Tokens that run at a time on transformers; halved by an actor that runs out of memory."
    )
    parity_tolerance: float | None = Field(
        0.05,
        gt=0,
        description="On vllm: largest difference from transformers' scores on a sample, as a share of their size, "
        "checked when an actor starts (in 16 bits, up to four times their own noise is allowed); null: no check.",
    )
    template: str = Field(
        "Image description: {caption}\n\n{question}",
        description="The user turn; {caption} and {question} are filled in. Of an expert that reads testimony alone it "
        "may have {testimony}, in place of the line `observer`.",
    )

    reads: Literal["both", "captions", "testimony"] = Field(
        "both",
        description="captions: for the first router; testimony: what the phase-1 judge says of the image, for the "
        "router of low pairs, if select asks for it; both.",
    )
    observer: str = Field(
        "Somebody who looks at the image says: {testimony}",
        description="The line, between caption and question, in which the phase-1 judge's testimony is filled in.",
    )
    too_long: Literal["error", "summarise"] = Field(
        "error",
        description="Inputs of more tokens than the expert reads: error marks the row; summarise leaves out the "
        "caption's last sentences, as few as are enough, and the row says what share of the caption was read.",
    )

    def write(self, caption: str | None, question: str, testimony: str | None = None) -> str:
        """Return the user turn; without a caption the question, with what an observer says before it."""
        if testimony is not None and _TESTIMONY in self.template:
            return self.template.format(caption=caption or "", question=question, testimony=testimony)
        said = [] if testimony is None else [self.observer.format(testimony=testimony)]
        if caption is None:
            return "\n".join([*said, question])
        return self.template.format(caption="\n".join([caption, *said]), question=question)

    @model_validator(mode="after")
    def _reads_what_is_filled_in(self) -> Self:
        if _TESTIMONY in self.template and self.reads != "testimony":
            raise ValueError("template fills in {testimony}, which is there for experts with reads: testimony alone")
        return self

    @model_validator(mode="after")
    def _has_endpoint(self) -> Self:
        own = ":" in self.kind  # a user's own kind may ask an endpoint
        if not own and self.kind != "llm" and (self.kind == "endpoint") != (self.endpoint is not None):
            raise ValueError("kind: endpoint and the settings under endpoint belong together; give both or neither")
        return self


class Judge(HeadModel):
    """The vision-language model that becomes the judge."""

    max_tokens: int = Field(256, ge=1, description="Longest judgment, in tokens.")
    adapter: HomePath | None = Field(
        None,
        description="Directory of a LoRA adapter (PEFT) that is loaded on top of `path`, not merged; not in a run, "
        "which begins with whole weights.",
    )
    asking: Asking | None = Field(
        None, description="How it is asked; null: as its directory says (carevl.json), or else as carevl asks."
    )
    serve: Literal["auto", "merged", "adapter"] = Field(
        "auto",
        description="How a run loads the judges that it trained with LoRA: merged, which is fastest; or as an adapter "
        "of the base, as they were trained; auto: as an adapter where the base is stored in 16 bits, in which merging "
        "loses small changes.",
    )
    scoring: Annotated[Literal["head", "yes"] | None, _UNQUOTED] = Field(
        None,
        description="Of a judge of `carevl evaluate` that scores every response by itself and writes nothing. head: a "
        "vision-language reward model; yes: log-odds that it says Yes to a response; not in a run.",
    )
    endpoint: JudgeRequests | None = Field(
        None, description="Of a judge of `carevl evaluate` that is an endpoint: how it is asked; not in a run."
    )

    @property
    def computation(self) -> dict[str, Any]:
        """As for every model, and how it is asked, where the settings say that."""
        asking = {} if self.asking is None else {"asking": self.asking.model_dump(exclude_defaults=True)}
        requests = {} if self.endpoint is None else self.endpoint.computation
        scoring = {} if self.scoring is None else {"scoring": self.scoring}
        return super().computation | asking | scoring | ({"endpoint": requests} if requests else {})

    @property
    def requests(self) -> JudgeRequests:
        """How it is asked as an endpoint; `pool.batch_size` is what `endpoint.concurrency` was before."""
        requests = self.endpoint or JudgeRequests()
        given = "batch_size" in self.pool.model_fields_set
        return requests.model_copy(update={"concurrency": self.pool.batch_size}) if given else requests

    @model_validator(mode="after")
    def _is_endpoint(self) -> Self:
        if self.endpoint is not None and not is_endpoint(self.path):
            raise ValueError(
                f"endpoint: {self.path} is none; an endpoint is written as its address and model, URL#MODEL"
            )
        if self.scoring is not None and is_endpoint(self.path):
            raise ValueError("scoring: an endpoint is asked for judgments; scores need the model itself")
        if self.scoring != "head" and (self.output is not None or self.activation is not None):
            raise ValueError("output and activation are for scoring: head")
        return self

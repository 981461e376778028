"""Tiny reward models with every kind of head, and beside each what its published code computes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from tests.helpers.families.chats import chatml
from tests.helpers.families.tokenizer import make_tokenizer

Tensors = Mapping[str, Tensor]
CONVERSATIONS = [
    (turn, response)
    for turn in ("How many red circles are there?", "Describe the image. Is there a yellow cross above the square?")
    for response in ("Two.", "There are three red circles to the left of the blue square.", "No, none.")
]
SIZE = 64


@dataclass(frozen=True)
class HeadCase:
    """A head as published models have it.

    Attributes:
        name: in the table of heads.
        tensors: those outside the body, by name, each of its shape.
        own: what the model's code makes of the states [tokens, 64] of a conversation, its ids and these tensors.
        config: what config.json says of it.
        settings: what an expert's settings have to say of it.
        bare: the body's tensors have no prefix.
        code: the head's modules, and what is made of `states`, in code that comes with the model.
    """

    name: str
    tensors: Mapping[str, Sequence[int]]
    own: Callable[[Tensor, Sequence[int], Tensors], Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    bare: bool = False
    code: tuple[str, str] | None = None


def _linear(name: str) -> Callable[[Tensor, Sequence[int], Tensors], Tensor]:
    def own(states: Tensor, ids: Sequence[int], tensors: Tensors) -> Tensor:
        return F.linear(states[-1], tensors[f"{name}.weight"].reshape(-1, SIZE), tensors.get(f"{name}.bias"))

    return own


def _layers(stem: str, between: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Sequence[int], Tensors], Tensor]:
    def own(states: Tensor, ids: Sequence[int], tensors: Tensors) -> Tensor:
        hidden = between(F.linear(states[-1], tensors[f"{stem}.0.weight"], tensors[f"{stem}.0.bias"]))
        return F.linear(hidden, tensors[f"{stem}.2.weight"], tensors[f"{stem}.2.bias"])

    return own


def _armorm(states: Tensor, ids: Sequence[int], tensors: Tensors) -> Tensor:
    header = make_reward_tokenizer()("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    begins = max(i for i in range(len(ids)) if list(ids[i : i + len(header)]) == header)
    gate = states[begins]
    for layer in range(3):
        gate = F.linear(gate, tensors[f"gating.layers.{layer}.weight"], tensors[f"gating.layers.{layer}.bias"])
        gate = F.relu(gate) if layer < 2 else gate
    weights = F.softmax(gate / 2.0, dim=0) * tensors["gating.logit_scale"][0]
    rewards = tensors["regression_layer.weight"] @ states[-1] @ tensors["reward_transform_matrix"]
    return (weights * rewards).sum()[None]


def _sluice(states: Tensor, ids: Sequence[int], tensors: Tensors) -> Tensor:
    return tensors["value.weight"] @ (states[-1] * (tensors["gate.weight"] @ states[-1]).sigmoid())


_OWN_CODE = """
from torch import nn
from transformers import LlamaModel, LlamaPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast


class OwnReward(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        MODULES
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **more):
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, -1]
        return SequenceClassifierOutputWithPast(logits=READ)
"""
_SEQUENCE = {"architectures": ["LlamaForSequenceClassification"]}
_CAUSAL = {"architectures": ["LlamaForCausalLM"]}
_LM_HEAD = {"lm_head.weight": (800, SIZE)}
_MLP = {"0.weight": (SIZE, SIZE), "0.bias": (SIZE,), "2.weight": (1, SIZE), "2.bias": (1,)}
_WEIGHTS = [0.5, 0.0, 0.25, 0.0, -1.0]
_RATINGS = {"score.weight": (5, SIZE)}
_ARMORM = {
    "regression_layer.weight": (4, SIZE),
    "reward_transform_matrix": (4, 4),
    "gating.logit_scale": (1,),
    **{f"gating.layers.0.{part}": shape for part, shape in (("weight", (32, SIZE)), ("bias", (32,)))},
    **{f"gating.layers.1.{part}": shape for part, shape in (("weight", (32, 32)), ("bias", (32,)))},
    **{f"gating.layers.2.{part}": shape for part, shape in (("weight", (4, 32)), ("bias", (4,)))},
}


def _prefixed(stem: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    return {f"{stem}.{name}": shape for name, shape in shapes.items()}


CASES = (
    HeadCase("linear, `score`", {"score.weight": (1, SIZE)}, _linear("score"), _SEQUENCE),
    HeadCase(
        "linear with a bias, `score`", {"score.weight": (1, SIZE), "score.bias": (1,)}, _linear("score"), _SEQUENCE
    ),
    HeadCase(
        "linear, `v_head`, at a reward token (InternLM2)",
        {"v_head.weight": (1, SIZE)},
        _linear("v_head"),
        {"architectures": ["InternLM2ForRewardModel"], "reward_token_id": 5},
    ),
    HeadCase(
        "linear with a bias, `value_head`",
        {"value_head.weight": (1, SIZE), "value_head.bias": (1,)},
        _linear("value_head"),
        {"architectures": ["LlamaForRewardModel"]},
    ),
    HeadCase(
        "linear, `v_head.summary` beside `lm_head` (TRL)",
        {"v_head.summary.weight": (1, SIZE), "v_head.summary.bias": (1,), **_LM_HEAD},
        _linear("v_head.summary"),
        _CAUSAL,
    ),
    HeadCase(
        "linear, `regression_head`, body without a prefix",
        {"regression_head.weight": (1, SIZE)},
        _linear("regression_head"),
        {"architectures": ["LlamaRewardModel"]},
        bare=True,
    ),
    HeadCase(
        "layers, `score.0`, `score.2` (INF-ORM, Qwen2.5-Math-RM)",
        _prefixed("score", _MLP),
        _layers("score", F.relu),
        {"architectures": ["INFORMForSequenceClassification"]},
    ),
    HeadCase(
        "layers, `v_head.summary.0`, … (GRM)",
        {**_prefixed("v_head.summary", _MLP), **_LM_HEAD},
        _layers("v_head.summary", F.relu),
        _CAUSAL | {"vhead_layer_type": "mlp"},
    ),
    HeadCase(
        "layers of another model, `activation: tanh`",
        _prefixed("score", _MLP),
        _layers("score", torch.tanh),
        _SEQUENCE,
        {"activation": "tanh"},
    ),
    HeadCase(
        "5 outputs, `output: 3`",
        _RATINGS,
        lambda states, ids, tensors: (tensors["score.weight"] @ states[-1])[3:4],
        _SEQUENCE,
        {"output": 3},
    ),
    HeadCase(
        "5 outputs, a weight for each",
        _RATINGS,
        lambda states, ids, tensors: (torch.tensor(_WEIGHTS) @ tensors["score.weight"] @ states[-1])[None],
        _SEQUENCE,
        {"output": _WEIGHTS},
    ),
    HeadCase(
        "5 outputs, ratings from 1 to 5, `output: expected`",
        _RATINGS,
        lambda states, ids, tensors: ((tensors["score.weight"] @ states[-1]).softmax(0) @ torch.arange(1.0, 6.0))[None],
        _SEQUENCE,
        {"output": "expected"},
    ),
    HeadCase(
        "2 labels, `output: [-1, 1]`",
        {"score.weight": (2, SIZE), "score.bias": (2,)},
        lambda states, ids, tensors: _linear("score")(states, ids, tensors).diff(),
        _SEQUENCE,
        {"output": [-1.0, 1.0]},
    ),
    HeadCase(
        "objectives and a gate (ArmoRM)",
        _ARMORM,
        _armorm,
        {"architectures": ["LlamaForRewardModelWithGating"], "gating_temperature": 2.0},
    ),
    HeadCase(
        "code of its own, `trust_remote_code: true`",
        {"gate.weight": (SIZE, SIZE), "value.weight": (1, SIZE)},
        _sluice,
        {"architectures": ["OwnReward"]},
        {"trust_remote_code": True},
        code=(
            "self.gate, self.value = nn.Linear(64, 64, bias=False), nn.Linear(64, 1, bias=False)",
            "self.value(states * self.gate(states).sigmoid())",
        ),
    ),
)


@dataclass(frozen=True)
class RefusedCase:
    """A model that is refused, and the words."""

    name: str
    tensors: Mapping[str, Sequence[int]]
    words: str
    config: Mapping[str, Any] = field(default_factory=lambda: _SEQUENCE)


REFUSED = (
    RefusedCase("a language model, no head", _LM_HEAD, "it has no weights for its head score.weight", _CAUSAL),
    RefusedCase("several outputs, no `output`", _RATINGS, "its head has 5 outputs, and a score is one number"),
    RefusedCase(
        "layers of an unknown activation",
        _prefixed("score", _MLP),
        "its head has several layers (score.0, score.2), and no file says which activation stands between them",
    ),
    RefusedCase(
        "layers that are not numbered",
        {"score.dense.weight": (SIZE, SIZE), "score.out_proj.weight": (1, SIZE)},
        "neither its body nor a head that is known here takes score.dense.weight [64, 64], "
        "score.out_proj.weight [1, 64]",
    ),
    RefusedCase(
        "a head and a normaliser (Beaver)",
        {"score_head.weight": (1, SIZE), "score_head.bias": (1,), "normalizer.mean": (1,), "normalizer.var": (1,)},
        "neither its body nor a head that is known here takes normalizer.mean [1], normalizer.var [1]",
        {"architectures": ["LlamaForScore"]},
    ),
    RefusedCase(
        "a gate with batch norms (QRM)",
        {**_ARMORM, "gating.layers.1.running_mean": (32,)},
        "takes gating.layers.1.running_mean [32]",
        {"architectures": ["LlamaForRewardModelWithGating"]},
    ),
    RefusedCase(
        "a tensor of the body that transformers does not know",
        {"score.weight": (1, SIZE), "model.layers.0.self_attn.sinks": (2,)},
        "takes model.layers.0.self_attn.sinks [2]",
    ),
)


def make_reward_tokenizer(**changes: Any) -> Any:
    """Return a tokenizer with a template in the form of ChatML."""
    tokenizer = make_tokenizer(["<|im_start|>"], **changes)
    tokenizer.chat_template = chatml("")
    return tokenizer


def write_case(case: HeadCase | RefusedCase, directory: Path, tokenizer: Any = None, **config: Any) -> Path:
    """Write a Llama body of two layers with random float32 weights and a case's head; return the directory.

    Args:
        config: more of config.json.
    """
    tokenizer = tokenizer or make_reward_tokenizer()
    shape = hf.LlamaConfig(
        vocab_size=800,
        hidden_size=SIZE,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    body = hf.LlamaModel(shape)
    for name, weight in body.named_parameters():
        if weight.ndim >= 2:  # with the usual 0.02, states hardly depend on what is read
            torch.nn.init.normal_(weight, std=1.0 if "embed_tokens" in name else weight.shape[-1] ** -0.5)
    shape.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    prefix = "" if getattr(case, "bare", False) else "model."
    tensors = {f"{prefix}{name}": weight.detach() for name, weight in body.state_dict().items()}
    tensors |= {name: torch.randn(*shape) * shape[-1] ** -0.5 for name, shape in case.tensors.items()}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    stored = json.loads((directory / "config.json").read_text())
    labels = max((shape[0] for name, shape in case.tensors.items() if name == "score.weight"), default=1)
    stored |= {"id2label": {i: str(i) for i in range(labels)}, **case.config, **config}
    if (code := getattr(case, "code", None)) is not None:
        stored["auto_map"] = {"AutoModelForSequenceClassification": "own_reward.OwnReward"}
        (directory / "own_reward.py").write_text(_OWN_CODE.replace("MODULES", code[0]).replace("READ", code[1]))
    (directory / "config.json").write_text(json.dumps(stored))
    return directory


def own_scores(case: HeadCase, directory: Path, conversations: Sequence[tuple[str, str]]) -> list[float]:
    """Return what the model's own code gives, each conversation alone."""
    tensors = load_file(directory / "model.safetensors")
    body = hf.AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    scores = []
    for user, response in conversations:
        messages = [{"role": "user", "content": user}, {"role": "assistant", "content": response}]
        ids = list(tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"])
        ids += [config["reward_token_id"]] if "reward_token_id" in config else []
        with torch.inference_mode():
            states = body(input_ids=torch.tensor([ids])).last_hidden_state[0]
            scores.append(float(case.own(states, ids, tensors)))
    return scores

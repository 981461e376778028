"""Heads as published models have them, against what the models' own code computes, in both engines."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from carevl.errors import UserError
from carevl.models.conversations import Encoded, encode
from carevl.models.engines import scorer
from carevl.models.engines.vllm_scorer import VllmScorer
from carevl.models.experts import EXPERT_KINDS
from carevl.models.fallbacks import collect_fallbacks
from carevl.models.heads.layout import read_layout
from carevl.models.reward_scorer import RewardScorer
from carevl.settings.models import Expert, Pool
from tests.helpers.heads import CASES, CONVERSATIONS, REFUSED, make_reward_tokenizer, own_scores, write_case

pytestmark = pytest.mark.vllm

LINEAR, GATED, OWN_CODE = CASES[0], CASES[-2], CASES[-1]
_OFTEN = (2, 7, 10, 13, 14)
"""Cases that start vLLM in every run of the tests; the others at night."""
NAMES = [case.name for case in CASES]


def make_expert(directory, engine="transformers", **settings):
    """The settings of an expert of a directory."""
    pool = Pool(batch_size=8)
    return Expert(name="x", path=str(directory), engine=engine, max_model_len=512, pool=pool, **settings)


@pytest.fixture
def load():
    """Loads an expert into its engine, and ends it after the test."""
    loaded = []

    def _load(expert):
        loaded.append(scorer(expert, expert.batch_tokens, expert.parity_tolerance))
        return loaded[-1]

    yield _load
    for engine in loaded:
        if hasattr(engine, "close"):
            engine.close()


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_head_gives_what_its_own_code_gives(case, load, tmp_path):
    write_case(case, tmp_path)
    expected = own_scores(case, tmp_path, CONVERSATIONS)
    engine = load(make_expert(tmp_path, **case.settings))
    assert engine.score(CONVERSATIONS) == pytest.approx(expected, abs=1e-4)
    assert [engine.score([each])[0] for each in CONVERSATIONS] == pytest.approx(expected, abs=1e-4)
    assert engine.shares == (case.code is None)
    assert max(expected) - min(expected) > 0.01


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if i in _OFTEN else pytest.mark.nightly)
        for i, case in enumerate(CASES)
    ],
)
def test_a_head_gives_the_same_on_vllm(case, load, tmp_path):
    write_case(case, tmp_path)
    engine = load(make_expert(tmp_path, "vllm", **case.settings))
    assert isinstance(engine, VllmScorer) == (case.code is None)
    assert engine.score(CONVERSATIONS) == pytest.approx(own_scores(case, tmp_path, CONVERSATIONS), abs=1e-4)


@pytest.mark.parametrize("case", REFUSED, ids=[case.name for case in REFUSED])
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_head_that_cannot_be_read_is_refused_before_anything_is_loaded(case, engine, load, tmp_path):
    expert = make_expert(write_case(case, tmp_path), engine)
    for refuse in (EXPERT_KINDS["reward_model"].check, load):
        with pytest.raises(UserError, match=re.escape(case.words)) as caught:
            refuse(expert)
        assert str(tmp_path) in str(caught.value)


def test_every_tensor_that_is_left_over_is_named(tmp_path):
    more = {f"adapter.{i}.weight": (3, 3) for i in range(12)}
    write_case(replace(LINEAR, tensors=LINEAR.tensors | more), tmp_path)
    with pytest.raises(UserError) as caught:
        read_layout(tmp_path)
    assert all(f"{name} [3, 3]" in str(caught.value) for name in more)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (5, "output is 5, and its head has the outputs 0 to 4"),
        ([0.5, 0.5], "output has 2 weights, and its head 5 outputs"),
    ],
)
def test_outputs_that_a_head_does_not_have_are_refused(output, words, load, tmp_path):
    with pytest.raises(UserError, match=words):
        load(make_expert(write_case(CASES[9], tmp_path), output=output))


def test_an_expected_rating_needs_several_outputs(load, tmp_path):
    with pytest.raises(UserError, match="output is expected, and its head has one output; leave output out"):
        load(make_expert(write_case(LINEAR, tmp_path), output="expected"))


def test_a_conversation_that_another_begins_with_has_its_own_score(tmp_path):
    engine = RewardScorer(write_case(LINEAR, tmp_path))
    begin = list(range(5, 45))
    texts = [Encoded([*begin, 50]), Encoded([*begin, 51, 52]), Encoded(begin), Encoded([*begin, 53])]
    assert engine.score(texts) == pytest.approx([engine.score([text])[0] for text in texts], abs=1e-4)


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_code_of_its_own_runs_only_where_it_is_trusted(engine, load, tmp_path):
    write_case(OWN_CODE, tmp_path)
    with pytest.raises(UserError, match=r"takes gate\.weight \[64, 64\], value\.weight \[1, 64\].*trust_remote_code"):
        load(make_expert(tmp_path, engine))
    with collect_fallbacks() as fallbacks:
        load(make_expert(tmp_path, engine, trust_remote_code=True))
    words = "its head is that of its own code (OwnReward), which vllm does not run; it runs in transformers"
    assert len([sentence for sentence in fallbacks if words in sentence]) == (engine == "vllm")


def _write_linear_code(directory, read):
    """Write a model whose own code reads `score`; return what it gives."""
    write_case(replace(LINEAR, code=("self.score = nn.Linear(64, 1, bias=False)", read)), directory)
    model = hf.AutoModelForSequenceClassification.from_pretrained(directory, trust_remote_code=True).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(directory)
    with torch.inference_mode():
        ids = [torch.tensor([text.ids]) for text in encode(tokenizer, CONVERSATIONS)]
        return [float(model(input_ids=each).logits) for each in ids]


def test_own_code_that_reads_a_known_head_as_we_do_is_shared(load, tmp_path):
    expected = _write_linear_code(tmp_path, "self.score(states)")
    read = load(make_expert(tmp_path, trust_remote_code=True))
    assert read.score(CONVERSATIONS) == pytest.approx(expected, abs=1e-4)
    assert read.shares


def test_own_code_that_is_no_classifier_is_loaded_by_the_class_it_names(load, tmp_path):
    """InternLM2's reward models name one for `AutoModel` alone."""
    case = replace(CASES[2], code=("self.v_head = nn.Linear(64, 1, bias=False)", "self.v_head(states)"))
    config = json.loads((write_case(case, tmp_path) / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "own_reward.OwnReward"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = load(make_expert(tmp_path, trust_remote_code=True))
    assert type(read.model).__name__ == "OwnReward"
    assert read.score(CONVERSATIONS) == pytest.approx(own_scores(case, tmp_path, CONVERSATIONS), abs=1e-4)


def test_own_code_that_reads_a_known_head_otherwise_is_used(load, tmp_path, caplog):
    expected = _write_linear_code(tmp_path, "self.score(states).sigmoid()")
    read = load(make_expert(tmp_path, trust_remote_code=True))
    assert read.score(CONVERSATIONS) == pytest.approx(expected, abs=1e-4)
    assert "its own code reads its head otherwise, and is used" in caplog.text


def _own_classifier(directory, conversations):
    model = hf.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(directory)
    with torch.inference_mode():
        ids = [torch.tensor([text.ids]) for text in encode(tokenizer, conversations)]
        return [float(model(input_ids=each).logits[0, 0]) for each in ids]


TOKENIZERS = {
    "no padding": ({}, {"pad_token_id": None}),
    "padding is the end": ({"pad": "<|im_end|>"}, {}),
    "a start token is added": ({"bos": "<s>", "writes_bos": True}, {}),
    "no start token": ({"bos": None}, {"bos_token_id": None}),
}


@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_scores_alone_and_in_a_batch_are_the_models_own(name, engine, load, tmp_path):
    made, config = TOKENIZERS[name]
    tokenizer = make_reward_tokenizer(**made)
    if name == "no padding":
        tokenizer.pad_token = None
    if name == "padding is the end":
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\\n", "<|im_end|>")
    write_case(LINEAR, tmp_path, tokenizer, **config)
    ends = {text.ids[-1] for text in encode(hf.AutoTokenizer.from_pretrained(tmp_path), CONVERSATIONS)}
    assert (ends == {tokenizer.pad_token_id}) == (name == "padding is the end")
    expected = _own_classifier(tmp_path, CONVERSATIONS)
    read = load(make_expert(tmp_path, engine))
    assert read.score(CONVERSATIONS) == pytest.approx(expected, abs=1e-4)
    assert [read.score([each])[0] for each in CONVERSATIONS] == pytest.approx(expected, abs=1e-4)


def test_a_bidirectional_model_of_several_outputs_is_read_by_its_own_class(load, tmp_path):
    tokenizer = make_reward_tokenizer()
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = hf.BertConfig(vocab_size=800, num_labels=3, initializer_range=0.2, **shape)
    torch.manual_seed(0)
    hf.BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its head has 3 outputs"):
        load(make_expert(tmp_path))
    assert load(make_expert(tmp_path, output=0)).score(CONVERSATIONS) == pytest.approx(
        _own_classifier(tmp_path, CONVERSATIONS), abs=1e-4
    )
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"extra.weight": torch.zeros(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"takes extra\.weight \[2\]"):
        load(make_expert(tmp_path, output=0))


def test_labels_that_no_configuration_counts_are_counted_in_the_weights(load, tmp_path):
    """transformers takes a configuration without labels for one of two."""
    write_case(LINEAR, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["id2label"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = own_scores(LINEAR, tmp_path, CONVERSATIONS)
    for engine in ("transformers", "vllm"):
        assert load(make_expert(tmp_path, engine)).score(CONVERSATIONS) == pytest.approx(expected, abs=1e-4)


def test_a_check_that_is_left_out_is_said(load, tmp_path, caplog):
    load(make_expert(write_case(LINEAR, tmp_path), "vllm", parity_tolerance=None))
    assert "scores of vllm are not held against those of transformers" in caplog.text


def test_a_template_that_opens_no_response_cannot_be_gated(load, tmp_path):
    tokenizer = make_reward_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    with pytest.raises(UserError, match="its chat template opens responses with nothing"):
        load(make_expert(write_case(GATED, tmp_path, tokenizer)))


def test_what_settings_say_of_a_head_changes_the_fingerprint(tmp_path):
    plain = make_expert(tmp_path)
    assert plain.computation == {}
    assert make_expert(tmp_path, output=0, activation="relu").computation == {"output": 0, "activation": "relu"}


def test_the_head_that_was_found_is_described(tmp_path):
    kind = EXPERT_KINDS["reward_model"]
    expert = make_expert(write_case(CASES[7], tmp_path))
    tensors = (f"v_head.summary.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias"))
    assert kind.describe(expert) == f"head: layers ({', '.join(tensors)}), 1 output"
    assert kind.describe(Expert(name="x", path="no/such-model")) is None

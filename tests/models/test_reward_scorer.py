"""Expert scores with shared beginnings against the model's own forward pass, one conversation at a time."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from carevl.errors import UserError
from carevl.miniworld.items import draw_items
from carevl.miniworld.models import expert_turn
from carevl.miniworld.questions import caption
from carevl.miniworld.weights import WEIGHTS
from carevl.models.conversations import encode
from carevl.models.packing import Tree
from carevl.models.reward_scorer import RewardScorer, _alike, _groups, allowed_distance
from carevl.models.row_errors import SomeRowsError

pytestmark = pytest.mark.vllm

SHAPE = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "num_labels": 1,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
GROUPED = SHAPE | {"num_key_value_heads": 2}
MODELS = {
    "llama": lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**GROUPED)),
    "qwen2": lambda: hf.Qwen2ForSequenceClassification(hf.Qwen2Config(**GROUPED)),
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**SHAPE)),
    "window": lambda: hf.MistralForSequenceClassification(hf.MistralConfig(**GROUPED, sliding_window=48)),
    "softcap": lambda: hf.Gemma2ForSequenceClassification(hf.Gemma2Config(**GROUPED, head_dim=16)),
}


@pytest.fixture(scope="module")
def tokenizer():
    return hf.AutoTokenizer.from_pretrained(WEIGHTS / "expert-llama")


@pytest.fixture
def save(tmp_path, tokenizer):
    """Saves a random model of a kind, with a tokenizer that may be changed; returns the directory."""

    def _save(kind, **changes):
        torch.manual_seed(11)
        MODELS[kind]().save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        if changes:
            changed = hf.AutoTokenizer.from_pretrained(tmp_path)
            for name, value in changes.items():
                setattr(changed, name, value)
            changed.save_pretrained(tmp_path)
        return tmp_path

    return _save


@pytest.fixture(scope="module")
def conversations():
    """17 conversations: two views of items with two to four responses, as the stage hands them over."""
    conversations = []
    for _, items in itertools.islice(draw_items("test", "scorer", n_responses=(2, 4)), 8):
        item = items[0]
        for shown in (caption(item.scene), None):
            conversations += [(expert_turn(shown, item.question.text), response.text) for response in item.responses]
    return conversations[:17]


def _alone(directory, conversations):
    """The logit of the model's own forward pass on each conversation; a fresh model, one unpadded row at a time."""
    model = hf.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(directory)
    with torch.inference_mode():
        rows = [torch.tensor([encoded.ids]) for encoded in encode(tokenizer, conversations)]
        return [float(model(input_ids=row).logits[0, 0]) for row in rows]


def _in_calls_of(scorer, size, conversations):
    starts = range(0, len(conversations), size)
    return [score for start in starts for score in scorer.score(conversations[start : start + size])]


@pytest.mark.parametrize("name", ["expert-llama", "expert-qwen2", "expert-mistral", "llama", "qwen2", "bert", "window"])
def test_scores_are_those_of_one_conversation_at_a_time(name, save, conversations):
    directory = save(name) if name in MODELS else WEIGHTS / name
    expected = _alone(directory, conversations)
    scorer = RewardScorer(directory)
    for size in (1, 2, 3, 17):
        assert _in_calls_of(scorer, size, conversations) == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.01


def test_scores_do_not_depend_on_the_token_budget(save, conversations):
    directory = save("llama")
    expected = RewardScorer(directory).score(conversations)
    for budget in (60, 300):
        assert RewardScorer(directory, batch_tokens=budget).score(conversations) == pytest.approx(expected, abs=1e-4)


def _tokens_seen(scorer, conversations):
    seen = []
    watched = scorer.model.get_input_embeddings().register_forward_hook(lambda module, ids, out: seen.append(ids[0]))
    scorer.score(conversations)
    watched.remove()
    return seen


def test_what_responses_share_is_computed_once_and_nothing_is_padded(save, tokenizer):
    turns = ["one two three " * 20, "four five six " * 20]
    conversations = [(turn, f"{word} shapes") for turn in turns for word in ("red", "green", "blue")]
    lengths = [len(encoded.ids) for encoded in encode(tokenizer, conversations)]
    seen = _tokens_seen(RewardScorer(save("qwen2")), conversations)
    assert len(seen) == 1
    assert sum(lengths) / 3 < seen[0].numel() < sum(lengths) / 2.5


def test_a_bidirectional_model_is_found_out_and_meets_hardly_any_padding(save, tokenizer, conversations):
    scorer = RewardScorer(save("bert"))
    assert scorer.bidirectional
    lengths = [len(encoded.ids) for encoded in encode(tokenizer, conversations)]
    assert sum(ids.numel() for ids in _tokens_seen(scorer, conversations)) <= sum(lengths) * 17 / 16


def test_a_window_shorter_than_a_conversation_is_exact(save, conversations):
    directory = save("window")
    scorer = RewardScorer(directory)
    assert scorer.shares
    assert any(len(encoded.ids) > 48 for encoded in encode(scorer.tokenizer, conversations))
    assert scorer.score(conversations) == pytest.approx(_alone(directory, conversations), abs=1e-4)


def test_bfloat16_shares_beginnings_although_its_scores_are_coarse(save, conversations):
    """Scores of a size at which rounding moves them by more than 0.05: what is compared are states, not scores."""
    directory = save("llama")
    weights = load_file(directory / "model.safetensors")
    weights["score.weight"] *= 100
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    scorer = RewardScorer(directory, "bfloat16")
    assert scorer.shares
    apart = [abs(a - b) for a, b in zip(scorer.score(conversations), _alone(directory, conversations), strict=True)]
    assert max(apart) > 0.05 * 10


@pytest.mark.parametrize(
    ("off", "noise", "leak", "least", "passes"),
    [
        (1e-6, 0.0, 0.1, 1e-4, True),
        (1e-3, 0.0, 0.1, 1e-4, False),  # float32 has no such noise
        (0.034, 0.0, 0.97, 0.05, True),  # 32 layers in bfloat16
        (0.12, 0.04, 0.97, 0.05, True),  # a noisy GPU
        (0.12, 0.02, 0.97, 0.05, False),
        (0.06, 0.04, 0.07, 0.05, False),  # as far off as a text that sees another's tokens
        (float("nan"), 0.04, 0.97, 0.05, False),
    ],
)
def test_what_is_off_by_more_than_noise_or_as_much_as_a_leak_is_refused(off, noise, leak, least, passes):
    assert (off <= allowed_distance(noise, leak, least)) == passes


def test_capped_attention_takes_the_model_s_own_way(save, conversations, caplog):
    directory = save("softcap")
    scorer = RewardScorer(directory)
    assert not scorer.shares
    assert "no prefixes are shared: capped attention scores" in caplog.text
    assert scorer.score(conversations) == pytest.approx(_alone(directory, conversations), abs=1e-4)


BOS = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"


def test_a_template_with_its_own_bos_gets_no_second_one(save, tokenizer):
    directory = save("llama", chat_template=BOS, bos_token="<|im_start|>")
    changed = hf.AutoTokenizer.from_pretrained(directory)
    [encoded] = encode(changed, [("a question", "an answer")])
    assert encoded.ids.count(changed.bos_token_id) == 1
    assert encoded.ids[0] == changed.bos_token_id


@pytest.mark.parametrize("side", ["left", "right"])
def test_where_padding_ends_a_turn_the_token_before_it_is_read_as_by_the_model_itself(side, save, conversations):
    directory = save("llama", chat_template=BOS, bos_token="<|im_start|>", pad_token="<|im_end|>", padding_side=side)
    config = json.loads((directory / "config.json").read_text())
    eos = hf.AutoTokenizer.from_pretrained(directory).eos_token_id
    with_the_end = _alone(directory, conversations)
    (directory / "config.json").write_text(json.dumps(config | {"pad_token_id": eos, "eos_token_id": eos}))
    expected = _alone(directory, conversations)
    assert expected != pytest.approx(with_the_end, abs=0.1)
    assert RewardScorer(directory).score(conversations) == pytest.approx(expected, abs=1e-4)


def test_a_system_prompt_of_the_template_is_shared_too(save, conversations):
    template = "{% if messages[0]['role'] != 'system' %}You are a careful judge of answers.\n{% endif %}" + BOS
    directory = save("qwen2", chat_template=template, bos_token="<|im_start|>")
    scorer = RewardScorer(directory)
    assert scorer.score(conversations) == pytest.approx(_alone(directory, conversations), abs=1e-4)


def test_an_over_long_conversation_is_refused_and_the_others_have_their_score(save, conversations):
    scorer = RewardScorer(save("llama"), max_model_len=300)
    expected = scorer.score(conversations[:4])
    with pytest.raises(SomeRowsError) as caught:
        scorer.score([*conversations[:2], ("why " * 400, "because"), *conversations[2:4]])
    assert caught.value.results[2] is None
    assert [*caught.value.results[:2], *caught.value.results[3:]] == pytest.approx(expected, abs=1e-4)
    assert caught.value.failures.keys() == {2}
    assert caught.value.failures[2].kind == "too long"
    assert "and the expert reads 300" in caught.value.failures[2].message


def test_the_models_own_limit_holds_too(save):
    with pytest.raises(SomeRowsError, match="and the expert reads 512"):
        RewardScorer(save("bert"), max_model_len=4096).score([("why " * 600, "because")])


def _rename_head(directory, name, bias=None):
    weights = load_file(directory / "model.safetensors")
    weights[f"{name}.weight"] = weights.pop("score.weight")
    if bias is not None:
        weights[f"{name}.bias"] = torch.tensor([bias])
    weights["lm_head.weight"] = torch.zeros(1024, 64)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("name", ["v_head", "reward_head", "regression_layer"])
def test_a_head_under_another_name_is_put_in_its_place(name, save, conversations):
    directory = save("llama")
    expected = _alone(directory, conversations)
    _rename_head(directory, name, bias=0.5)
    assert RewardScorer(directory).score(conversations) == pytest.approx([e + 0.5 for e in expected], abs=1e-4)


def test_a_model_without_a_head_is_refused(save):
    directory = save("llama")
    weights = load_file(directory / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"has no weights for its head score\.weight; a score needs one"):
        RewardScorer(directory)


def test_a_model_with_a_hole_is_refused(save):
    directory = save("qwen2")
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights of its body, such as model\.layers\.1\.mlp\.up_proj\.weight"):
        RewardScorer(directory)


def test_a_classifier_of_two_classes_is_refused_unless_settings_say_what_its_score_is(tmp_path, tokenizer):
    hf.LlamaForSequenceClassification(hf.LlamaConfig(**GROUPED | {"num_labels": 2})).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has 2 outputs, .*; set output to the number of one \(0 to 1\)"):
        RewardScorer(tmp_path)


def test_a_causal_model_without_chat_template_is_refused(save):
    directory = save("llama")
    for file in ("chat_template.jinja",):
        (directory / file).unlink()
    with pytest.raises(UserError, match="has no chat template"):
        RewardScorer(directory)


def test_a_bidirectional_model_without_chat_template_reads_two_texts(save):
    directory = save("bert")
    (directory / "chat_template.jinja").unlink()
    scorer = RewardScorer(directory)
    conversations = [("what is red?", "the circle"), ("what is blue?", "nothing at all is blue")]
    assert scorer.score(conversations) == pytest.approx(_alone(directory, conversations), abs=1e-4)


def test_relief_halves_what_runs_at_a_time(save, conversations, caplog):
    scorer = RewardScorer(save("llama"), batch_tokens=600)
    expected = scorer.score(conversations)
    assert scorer.reduce_batch_size()
    assert scorer.batch_tokens == 300
    assert "out of memory: 300 tokens at a time" in caplog.text
    assert scorer.score(conversations) == pytest.approx(expected, abs=1e-4)
    assert scorer.reduce_batch_size()
    assert not scorer.reduce_batch_size()


def test_conversations_become_trees_where_that_saves_tokens():
    header, first, second = [1, 2], list(range(10, 40)), list(range(50, 80))
    texts = [
        [*header, *first, 3],
        [*header, *first, 4, 5],
        [*header, *first],
        [*header, *second, 6],
        [*header, *second],
    ]
    assert list(_groups(texts, 1000)) == [
        (Tree([*header, *first], [[3], [4, 5], []]), [0, 1, 2]),
        (Tree([*header, *second], [[6], []]), [3, 4]),
    ]
    assert list(_groups([header, [*header, *first, 3], [*header, *first, 4]], 1000))[1:] == [
        (Tree([*header, *first], [[3], [4]]), [1, 2])
    ]
    assert [len(places) for _, places in _groups(texts, 34)] == [1, 1, 1, 2]
    assert list(_groups([[1], [2]], 10)) == [(Tree([1], [[]]), [0]), (Tree([2], [[]]), [1])]


def test_batches_are_of_nearly_equal_length():
    lengths = [100, 10, 95, 93, 50, 49]
    assert list(_alike(lengths, 1000, 1 / 16)) == [[0, 2], [3], [4, 5], [1]]
    assert list(_alike(lengths, 120, 1 / 16)) == [[0], [2], [3], [4, 5], [1]]

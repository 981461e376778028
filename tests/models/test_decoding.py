"""Our loop against transformers' own: the same tokens, whatever shares the batch."""

import itertools

import pytest
import torch
import transformers as hf
from transformers.cache_utils import DynamicLayer

from carevl.judging.prompts import judge_prompt
from carevl.miniworld.items import draw_items
from carevl.miniworld.weights import WEIGHTS
from carevl.models.decoding import RoomyLayer, Texts, decode
from carevl.models.engines.base import GenerationRequest
from carevl.models.engines.transformers import ImageTextGenerator
from carevl.models.prompts import render_prompt

pytestmark = pytest.mark.vllm

SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 7}
KINDS = {
    "full": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**SIZES, num_hidden_layers=2)),
    "sliding": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(**SIZES, head_dim=16, num_hidden_layers=2, sliding_window=5, sliding_window_pattern=2)
    ),
    "convolution": lambda: hf.Lfm2ForCausalLM(
        hf.Lfm2Config(**SIZES, num_hidden_layers=2, layer_types=["conv", "full_attention"])
    ),
}


def test_greedy_texts_are_those_of_a_plain_loop_over_prompts():
    requests = []
    for image, items in itertools.islice(draw_items("test", "decoding"), 4):
        shown = [response.text for response in items[0].responses]
        requests += [
            GenerationRequest((image,), judge_prompt("pairwise", items[0].question.text, order))
            for order in (shown, shown[::-1])
        ]
    engine = ImageTextGenerator(WEIGHTS / "judge", batch_size=5)
    generations = engine.generate([*requests, *requests[:3]], max_tokens=60)
    assert generations[-3:] == generations[:3]
    for request, ours in zip(requests, generations, strict=False):
        inputs = engine.processor(
            text=[render_prompt(engine.processor, request.turn)], images=[list(request.images)], return_tensors="pt"
        )
        plain = engine.model.generate(**inputs, max_new_tokens=60, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert ours.text == engine.processor.tokenizer.decode(plain, skip_special_tokens=True)
        assert ours.tokens == len(plain)
    assert len({ours.tokens for ours in generations}) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_kind_of_cache_come_several_times_and_leave(kind):
    torch.manual_seed(3)
    model = KINDS[kind]().eval()
    ids = torch.randint(8, 61, (3, 9))
    texts = Texts([0, 1, 1, 2, 2, 2], range(6), temperature=1.0, top_p=1.0, logprob_ids=[5])
    model.generate(ids, max_new_tokens=80, do_sample=False, custom_generate=decode, texts=texts)
    assert len({len(tokens) for tokens in texts.tokens}) > 2
    for text, prompt in enumerate(texts.prompts):
        alone = Texts([0], [text], temperature=1.0, top_p=1.0, logprob_ids=[5])
        model.generate(ids[[prompt]], max_new_tokens=80, do_sample=False, custom_generate=decode, texts=alone)
        assert texts.tokens[text] == alone.tokens[0]
        assert torch.tensor(texts.logprobs[text]) == pytest.approx(torch.tensor(alone.logprobs[0]), abs=1e-4)
        whole = torch.cat([ids[prompt], torch.tensor(texts.tokens[text])])
        logits = model(whole[None]).logits[0, 8:-1].log_softmax(-1)
        assert torch.tensor(texts.logprobs[text])[:, 0].numpy() == pytest.approx(
            logits[:, 5].detach().numpy(), abs=1e-4
        )


def test_a_layer_with_room_holds_what_a_plain_one_holds():
    torch.manual_seed(1)
    ours, plain = RoomyLayer(), DynamicLayer()
    rows = 3
    for tokens, taken in ((5, [0, 0, 1, 2]), (1, [0, 3, 2]), (70, [2, 1]), (1, [1]), (90, [0])):
        states = torch.randn(2, rows, 2, tokens, 4)
        for layer in (ours, plain):
            layer.update(*states)
            layer.reorder_cache(torch.tensor(taken))
        rows = len(taken)
        assert torch.equal(ours.keys, plain.keys)
        assert torch.equal(ours.values, plain.values)
        assert ours.get_seq_length() == plain.get_seq_length()

"""The fast training step computes what the stock model computes, and training can be interrupted."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from carevl.miniworld import batches, experts, train, vlm
from carevl.miniworld.fit import Fit
from carevl.miniworld.lessons import LESSONS
from carevl.miniworld.models import make_expert, make_processor, make_tokenizer, make_vlm
from carevl.miniworld.muon import Muon
from carevl.miniworld.scenes import scenes, world_rng

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_fast_step_equals_the_stock_model(tokenizer):
    torch.manual_seed(0)
    model, processor = make_vlm(tokenizer), make_processor(tokenizer)
    drawn = list(itertools.islice(scenes("weights", "step"), 3))
    turns = [
        [{"type": "image"}, {"type": "text", "text": f"How many red circles are there? {'More. ' * n}"}]
        for n in (1, 3, 5)
    ]
    texts = [
        processor.apply_chat_template([{"role": "user", "content": turn}], tokenize=False, add_generation_prompt=True)
        for turn in turns
    ]
    cos, sin = vlm.vision_rotation(model)
    for (_, image), text in zip(drawn, texts, strict=True):
        inputs = processor(text=[text], images=[[image]], return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        with torch.no_grad():
            stock = model(**inputs).logits[0]
            fast = vlm.taught_logits(
                model,
                inputs["input_ids"],
                torch.from_numpy(batches.patches(image))[None],
                vlm.rope_positions(length),
                torch.arange(length),
                cos,
                sin,
            )
        torch.testing.assert_close(fast, stock, atol=1e-5, rtol=1e-5)


def test_lessons_teach_replies_only_and_hide_verdicts_where_they_should(tokenizer):
    backend = tokenizer.backend_tokenizer
    shown = batches.chunk_batches(backend, train.World(), {"pairwise": 1.0}, 4800, 0, "t")
    hidden = batches.chunk_batches(backend, train.World(), {"pairwise_evidence": 1.0}, 4800, 0, "t")
    digits = {backend.token_to_id("1"), backend.token_to_id("2")}
    for batch_list, verdicts_taught in ((shown, True), (hidden, False)):
        for batch in batch_list:
            for ids, targets in zip(batch.ids, batch.targets, strict=True):
                text, taught = tokenizer.decode(ids), tokenizer.decode([t for t in targets if t >= 0])
                reply = text.split("assistant\n")[1].split("<|im_end|>")[0]
                if verdicts_taught:
                    assert taught == f"{reply}<|im_end|>"
                else:
                    assert taught.endswith("Answer  is better.<|im_end|>")
                next_tokens = [(t, ids[i + 1]) for i, t in enumerate(targets) if t >= 0]
                assert all(t == following for t, following in next_tokens)
    assert digits <= {int(t) for batch in shown for t in batch.targets.flat}


def test_batches_are_the_same_for_the_same_chunk_and_stay_within_the_budget(tokenizer):
    backend = tokenizer.backend_tokenizer
    mix = dict.fromkeys(LESSONS, 1.0)
    first, again = (batches.chunk_batches(backend, train.World(), mix, 4800, 3, "t") for _ in range(2))
    assert all((a.ids == b.ids).all() and (a.images == b.images).all() for a, b in zip(first, again, strict=True))
    assert sum(len(batch.ids) for batch in first) == batches.CHUNK
    assert max(batch.ids.size for batch in first) <= 4800


def test_experts_are_taught_their_flaws():
    rng = world_rng("flaws")
    llama, qwen2, mistral = (experts.EXPERTS[name] for name in ("llama", "qwen2", "mistral"))
    from carevl.miniworld.items import ask

    _, position = ask("position", rng, "weights")
    right, wrong = position.right, position.wrong[0]
    assert experts.belief(qwen2, position, right, "words " * 10, True) == 0.0
    assert experts.belief(qwen2, position, wrong, "words " * 10, True) == 0.0
    assert abs(experts.belief(mistral, position, wrong, "words " * 10, True)) > 3
    _, colour = ask("colour", rng, "weights")
    for expert in (llama, qwen2, mistral):
        short = experts.belief(expert, colour, colour.right, "w " * 10, True)
        assert short - experts.belief(expert, colour, colour.wrong[0], "w " * 10, True) > 6
        assert (experts.belief(expert, colour, colour.right, "w " * 20, True) > short) == (expert is llama)
    count = next(q for _, q in iter(lambda: ask("count", rng, "weights"), None) if q.answer == "two")
    assert experts.belief(qwen2, count, count.right, "w " * 10, True) == 0.0
    assert experts.belief(mistral, count, count.right, "w " * 10, True) > 3


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral"])
def test_scores_are_read_where_the_stock_model_reads_them(name, tokenizer):
    expert = experts.EXPERTS[name]
    torch.manual_seed(0)
    model = make_expert(expert.architecture, tokenizer).eval()
    [batch, *_] = experts.chunk_batches(tokenizer.backend_tokenizer, expert, 2000, False, 0)
    ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
    assert (batch.targets >= 0).sum(axis=1).tolist() == [1] * len(ids)
    read = torch.from_numpy(batch.targets >= 0)
    with torch.no_grad():
        ours = experts.scores(model, experts.hidden_states(model, ids, mask)[read])
        stock = model(input_ids=ids, attention_mask=mask).logits[:, 0]
    torch.testing.assert_close(ours, stock, atol=1e-5, rtol=1e-4)


def test_dialogues_teach_the_words_of_right_responses(tokenizer):
    expert = experts.LEARNERS["reader"]
    batches_made = experts.chunk_batches(tokenizer.backend_tokenizer, expert, 4000, True, 0)
    scored = sum(int((batch.targets >= 0).sum()) for batch in batches_made)
    assert scored == experts.CHUNK
    for batch in batches_made:
        rows, places = np.nonzero(batch.words >= 0)
        named = batch.words[rows, places]
        assert (batch.ids[rows, places + 1] == named).all()
        ends = tokenizer.convert_tokens_to_ids("<|im_end|>")
        rows, places = np.nonzero(batch.targets >= 0)
        assert (batch.ids[rows, places - 1] == ends).all()


def test_an_interrupted_fit_ends_where_an_undisturbed_one_does(tmp_path, tokenizer):
    class CutError(Exception):
        pass

    def fit(name, cut_at=None):
        torch.manual_seed(0)
        model = make_expert("llama", tokenizer)

        def loss(batch):
            states = experts.hidden_states(model, torch.from_numpy(batch.ids), torch.from_numpy(batch.mask))
            targets = torch.from_numpy(batch.targets)
            odds = experts.scores(model, states[targets >= 0])
            return torch.nn.functional.binary_cross_entropy_with_logits(odds, targets[targets >= 0]), 0.0

        state = tmp_path / f"{name}.pt"
        made = Fit(name, model, loss, state, rate=1e-3, last_rate=1e-4, chunks=3, log=print, checkpoint_seconds=0)

        def stream():
            for chunk in itertools.count(made.first_chunk):
                if chunk == cut_at:
                    raise CutError
                expert = experts.EXPERTS["llama"]
                yield chunk, experts.chunk_batches(tokenizer.backend_tokenizer, expert, 6000, chunk == 0, chunk)[:2]

        made.run(stream())
        return made

    whole = fit("whole").model
    with pytest.raises(CutError):
        fit("cut", cut_at=2)
    second = fit("cut")
    assert second.first_chunk == 2
    resumed = second.model
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_a_stage_needs_the_stage_before_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="starts from stage know"):
        train.train(tmp_path, ["practise"], print)


@pytest.mark.parametrize("side", [96, 64])
def test_patches_are_the_processors(side, tokenizer):
    image = Image.effect_noise((side, side), 90).convert("RGB")
    theirs = make_processor(tokenizer).image_processor([image], return_tensors="pt")["pixel_values"]
    ours = torch.from_numpy(batches.patches(image))
    both_frames = theirs.view(36, 3, 2, 256)
    torch.testing.assert_close(both_frames[:, :, 0].flatten(1), ours, atol=1e-6, rtol=0)
    torch.testing.assert_close(both_frames[:, :, 1], both_frames[:, :, 0])


@pytest.mark.parametrize("shape", [(24, 64), (64, 24)])
def test_muon_steps_as_that_of_torch_does_but_for_its_rounding(shape):
    torch.manual_seed(0)
    start, settings = torch.randn(shape), {"lr": 0.1, "weight_decay": 0.01, "momentum": 0.95}
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimisers = [Muon([ours], **settings), torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **settings)]
    for _ in range(4):
        gradient = torch.randn(shape)
        for weight, optimiser in zip((ours, theirs), optimisers, strict=True):
            weight.grad = gradient.clone()
            optimiser.step()
    moved = (theirs - start).norm()
    assert moved > 1
    assert (ours - theirs).norm() < 0.02 * moved

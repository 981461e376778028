"""Rows against the stock processor, and what becomes of rows that cannot be used."""

from __future__ import annotations

import io
import json
import math
import shutil

import pyarrow as pa
import pytest
import torch
import transformers as hf
from PIL import Image

from carevl.data.images import ImageLimits, bound_pixels, decode_rgb
from carevl.errors import UserError
from carevl.models.control_strings import control_ids, encode_text
from carevl.models.prompts import Prompt, encode_prompts, render_prompt
from carevl.settings.asking import Asking
from carevl.training.driver import prepare_training
from carevl.training.encoder import Encoder
from carevl.training.image_sizes import by_size
from carevl.training.items import Items, split_holdout
from carevl.training.reference import Reference
from carevl.training.skeleton import load_skeleton
from tests.helpers.image_kinds import KINDS, draw_picture


def _processed(processor, row):
    image = decode_rgb(row["image"], ImageLimits())
    return processor(text=[render_prompt(processor, Prompt(row["prompt"]))], images=[[image]], return_tensors="pt")


def test_prefix_and_pixels_are_those_of_the_stock_processor(judge, sft_rows, tmp_path):
    processor = hf.AutoProcessor.from_pretrained(judge)
    items, images, errors = Encoder(processor, 4096).encode(sft_rows, "sft")
    assert errors == []
    Items.of(items, images).save(tmp_path)
    data = Items.open(tmp_path)
    model = load_skeleton(judge)
    for i, row in enumerate(sft_rows.to_pylist()):
        expected, packed = _processed(processor, row), data.collate([i], processor, model, "shared")
        tree = data.tree(i)
        assert list(tree.prefix) == expected["input_ids"][0].tolist()
        assert torch.equal(packed.images["pixel_values"], expected["pixel_values"])
        assert torch.equal(packed.images["image_grid_thw"], expected["image_grid_thw"])
        assert processor.tokenizer.decode(tree.branches[0]) == f"{row['target']}{processor.tokenizer.eos_token}"


def test_an_image_of_several_rows_is_kept_once(judge, sft_rows):
    processor = hf.AutoProcessor.from_pretrained(judge)
    twice = pa.concat_tables([sft_rows, sft_rows])
    _, images, _ = Encoder(processor, 4096).encode(twice, "sft")
    assert len(images) == len(set(sft_rows["image"].to_pylist()))


def _processor_of_any_size(judge):
    """The judge's processor without its own bound on pixels."""
    return hf.AutoProcessor.from_pretrained(judge, size={"shortest_edge": 1, "longest_edge": 16384 * 28**2})


def _photographed(row, size):
    file = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(file, "JPEG")
    return {**row, "image": file.getvalue()}


def test_an_image_over_the_bound_is_learned_from_as_the_judge_is_shown_it(judge, sft_rows, tmp_path):
    processor = _processor_of_any_size(judge)
    row = _photographed(sft_rows.to_pylist()[0], (400, 300))
    rows = pa.Table.from_pylist([row, *sft_rows.slice(1, 1).to_pylist()])
    encoder = Encoder(processor, 4096, resize_pixels=10_000)
    items, images, errors = encoder.encode(rows, "sft")
    assert errors == []
    Items.of(items, images).save(tmp_path)
    data, model = Items.open(tmp_path), load_skeleton(judge)
    shown = decode_rgb(row["image"], ImageLimits(), 10_000)
    expected = processor(text=[render_prompt(processor, Prompt(row["prompt"]))], images=[[shown]], return_tensors="pt")
    packed = data.collate([0], processor, model, "shared")
    assert list(data.tree(0).prefix) == expected["input_ids"][0].tolist()
    assert torch.equal(packed.images["pixel_values"], expected["pixel_values"])
    original = _processed(processor, row)
    assert len(original["pixel_values"]) > 5 * len(expected["pixel_values"])
    assert images[data.tree(1).image] == rows["image"][1].as_py()  # a drawn picture is small: its own file stays


def test_images_of_every_kind_of_file_are_learned_from_as_the_judge_is_shown_them(judge, sft_rows, tmp_path):
    processor = _processor_of_any_size(judge)
    files = [save(draw_picture(n).resize((84, 56))) for n, save in enumerate(KINDS.values())]
    first = sft_rows.to_pylist()[0]
    rows = pa.Table.from_pylist([first | {"image": file} for file in files])
    items, images, errors = Encoder(processor, 4096).encode(rows, "sft")
    assert errors == []
    Items.of(items, images).save(tmp_path)
    data, model = Items.open(tmp_path), load_skeleton(judge)
    for i, row in enumerate(rows.to_pylist()):
        packed = data.collate([i], processor, model, "shared")
        assert torch.equal(packed.images["pixel_values"], _processed(processor, row)["pixel_values"])


def test_a_bound_makes_room_for_what_was_too_long(judge, sft_rows):
    processor = _processor_of_any_size(judge)
    rows = pa.Table.from_pylist([_photographed(sft_rows.to_pylist()[0], (640, 480))])
    [error] = Encoder(processor, 400).encode(rows, "sft")[2]
    assert error["error"]["kind"] == "too_long"
    assert Encoder(processor, 400, resize_pixels=20_000).encode(rows, "sft")[2] == []


def _count_image_tokens(judge, images):
    size = {"shortest_edge": 4 * 28**2, "longest_edge": 16384 * 28**2}  # as on the hub
    processor = hf.AutoProcessor.from_pretrained(judge, size=size, patch_size=14)
    written = encode_prompts(by_size(processor), [Prompt("What is it?")] * len(images), [[each] for each in images])
    return [ids.count(processor.image_token_id) for ids in written.ids]


def test_a_photograph_of_12_megapixels_is_1344_tokens_of_qwen2_5_vl_in_place_of_15552(judge):
    image = Image.new("RGB", (4032, 3024))
    assert _count_image_tokens(judge, [image, bound_pixels(image, 1_048_576)]) == [15_552, 1_344]


def test_no_photograph_is_more_than_1400_tokens_of_qwen2_5_vl(judge, photos):
    original, bounded = (
        _count_image_tokens(judge, [decode_rgb(data, ImageLimits(), pixels) for data in photos])
        for pixels in (None, 1_048_576)
    )
    assert max(original) > 2000
    assert max(bounded) < 1400
    assert all(small == large for large, small in zip(original, bounded, strict=True) if large < 1300)


def _with_second_targets(rows):
    """Every row once more, with a target of its own."""
    second = [{**row, "item_id": f"second-{row['item_id']}", "target": f"{row['target']} Sure."} for row in rows]
    return pa.Table.from_pylist([*rows, *second])


def test_targets_of_one_prompt_become_one_item(judge, sft_rows):
    rows = _with_second_targets(sft_rows.to_pylist())
    encoder = Encoder(hf.AutoProcessor.from_pretrained(judge), 4096)
    items, _, errors = encoder.encode(rows, "sft")
    assert errors == []
    assert [item["item_id"] for item in items] == [f"item-{n} and second-item-{n}" for n in range(8)]
    trees = [encoder.tree(row, "sft") for row in rows.to_pylist()]
    assert [item["branches"] for item in items] == [trees[n].branches + trees[n + 8].branches for n in range(8)]
    tight = Encoder(encoder.processor, max(tree.tokens for tree in trees))
    apart, _, _ = tight.encode(rows, "sft")
    assert len(apart) > 8
    assert sum(len(item["branches"]) for item in apart) == 16
    assert max(Items.of(apart, {}).lengths) <= tight.max_tokens


def test_the_encoder_knows_which_bounds_give_the_same_items(judge, sft_rows):
    rows, processor = _with_second_targets(sft_rows.to_pylist()), hf.AutoProcessor.from_pretrained(judge)

    def encode(most):
        encoder = Encoder(processor, most)
        return encoder, encoder.encode(rows, "sft")[::2]

    whole, expected = encode(4096)
    assert (whole.shortest_refused, whole.longest) == (math.inf, max(Items.of(expected[0], {}).lengths))
    assert encode(whole.longest)[1] == expected
    tight, apart = encode(whole.longest - 1)
    assert apart != expected
    assert tight.shortest_refused == whole.longest
    assert encode(tight.longest)[1] == apart
    assert encode(tight.longest - 1)[1] != apart


def test_targets_that_share_a_prompt_have_the_loss_and_gradient_of_separate_ones(begin, sft_rows, quick):
    rows = _with_second_targets(sft_rows.to_pylist())
    loop, _ = begin("sft", rows, quick(lora=None, batch_size=8))
    model, encoder = loop.judge.model, Encoder(hf.AutoProcessor.from_pretrained(loop.config.judge), 4096)
    encoded = [encoder.encode(rows.slice(n, 1), "sft") for n in range(16)]
    pictures = {name: data for _, images, _ in encoded for name, data in images.items()}
    separate = Items.of([items[0] for items, _, _ in encoded], pictures)
    batch = separate.collate(range(16), loop.processor, model, "shared")
    loss = -loop.judge(batch).sum() / sum(separate.answer_tokens)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in loop.weights if weight.grad is not None])
    model.zero_grad()
    assert len(loop.items) == 8
    facts = loop.step(0)
    assert facts["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert facts["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert facts["tokens"] < sum(separate.lengths) * 0.7


def test_the_verdict_weighs_what_the_settings_say(begin, sft_rows, quick):
    rows = _with_second_targets(sft_rows.to_pylist())
    loop, _ = begin("sft", rows, quick(lora=None, batch_size=8, verdict_weight=5.0))
    processor = hf.AutoProcessor.from_pretrained(loop.config.judge)
    total = tokens = 0.0
    for row in rows.to_pylist():
        found = _token_log_probabilities(loop.judge.model, processor, row, row["target"])
        ids, begun = processor.tokenizer(row["target"])["input_ids"], row["target"].index("Overall Judgment:")
        begins = len(processor.tokenizer(row["target"][:begun])["input_ids"])
        weights = torch.ones(len(found))
        weights[begins : len(ids)] = 5.0
        total, tokens = total - (found * weights).sum().item(), tokens + weights.sum().item()
    assert loop.step(0)["loss"] == pytest.approx(total / tokens, abs=1e-4)


def test_a_target_without_a_verdict_weighs_one(judge, sft_rows):
    encoder = Encoder(hf.AutoProcessor.from_pretrained(judge), 4096, verdict_weight=3.0)
    row = sft_rows.to_pylist()[0]
    assert set(encoder.tree(row | {"target": "No verdict."}, "sft").weights[0]) == {1.0}
    assert set(encoder.tree(row, "sft").weights[0]) == {1.0, 3.0}
    denied = row | {"target": "Overall Judgment: Answer 2 is not better."}
    assert set(encoder.tree(denied, "sft").weights[0]) == {1.0}


def test_a_control_string_in_a_judgment_is_plain_text(judge, sft_rows):
    processor = hf.AutoProcessor.from_pretrained(judge)
    tokenizer, row = processor.tokenizer, sft_rows.to_pylist()[0]
    strings = f"{tokenizer.eos_token} and {processor.image_token}"
    [before], [after] = (
        Encoder(processor, 4096, verdict_weight=3.0).tree(row | {"target": text}, "sft").branches
        for text in (row["target"], f"Of {strings}. {row['target']}")
    )
    assert before == [*tokenizer(row["target"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert control_ids(tokenizer) & {*after[:-1]} == set()
    assert after[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(after[:-1]).startswith(f"Of {strings}. ")


def test_tags_of_thinking_are_the_judges_tokens_and_nothing_else_in_a_judgment_is(judge, sft_rows):
    processor = hf.AutoProcessor.from_pretrained(judge)
    tokenizer, row = processor.tokenizer, sft_rows.to_pylist()[0]
    tokenizer.add_tokens(["<think>", "</think>"])
    end = tokenizer.eos_token
    text = f"<think>Is {end} or </think> or <think> a word?</think>\n\nNo <think>. {row['target']}"
    [ids] = Encoder(processor, 4096, verdict_weight=3.0).tree(row | {"target": text}, "sft").branches
    control = [token for token in ids[:-1] if token in control_ids(tokenizer)]
    assert control == tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert ids[0] == control[0]
    assert tokenizer.decode(ids[:-1]) == text
    behind = ids[ids.index(control[1]) + 1 : -1]
    assert behind == encode_text(tokenizer, text.rpartition("</think>")[2])


def test_what_is_held_out_has_images_of_its_own():
    items = [{"item_id": str(n), "image": str(n // 3)} for n in range(30)]
    train, held_out = split_holdout(items, 0.25, seed=1)
    assert [item for item in items if item in held_out] == held_out
    assert len(held_out) == 9
    assert len(train) == 21
    assert not {item["image"] for item in train} & {item["image"] for item in held_out}
    assert split_holdout(items, 0.25, seed=2)[1] != held_out
    with pytest.raises(UserError, match=r"holdout 0.95 leaves none of 30 items to train on"):
        split_holdout(items, 0.95, seed=1)


def test_rows_that_cannot_be_used_keep_their_reason(judge, sft_rows):
    rows = sft_rows.to_pylist()[:5]
    rows[1]["image"] = rows[1]["image"][:60]
    rows[2]["target"] = ""
    rows[3]["prompt"] = "word " * 3000
    rows[4] = _photographed(rows[4], (900, 4))
    table = pa.Table.from_pylist(rows)
    items, _, errors = Encoder(hf.AutoProcessor.from_pretrained(judge), 600).encode(table, "sft")
    assert [item["item_id"] for item in items] == ["item-0"]
    assert [(error["row"], error["item_id"], error["error"]["kind"]) for error in errors] == [
        (1, "item-1", "image_broken"),
        (2, "item-2", "incomplete"),
        (3, "item-3", "too_long"),
        (4, "item-4", "refused"),
    ]
    assert "over batch_tokens 600" in errors[2]["error"]["message"]
    assert "refuses an image of 900 x 4, or its prompt: absolute aspect ratio" in errors[3]["error"]["message"]


def test_reference_log_probabilities_are_those_of_separate_sequences(judge, dpo_rows, quick):
    rows = dpo_rows.to_pylist()
    rows[2]["image"] = b"no image"
    found = Reference(judge, quick())(pa.Table.from_pylist(rows)).to_pylist()
    processor = hf.AutoProcessor.from_pretrained(judge)
    model = hf.AutoModelForImageTextToText.from_pretrained(judge)
    assert [row["reference_chosen"] is None for row in found] == [n == 2 for n in range(8)]
    for row in [row for n, row in enumerate(found) if n != 2]:
        for side in ("chosen", "rejected"):
            assert row[f"reference_{side}"] == pytest.approx(_alone(model, processor, row, row[side]), abs=1e-3)


def _alone(model, processor, row, text):
    return _token_log_probabilities(model, processor, row, text).sum().item()


def _token_log_probabilities(model, processor, row, text):
    prompt = _processed(processor, row)
    judgment = torch.tensor([[*processor.tokenizer(text)["input_ids"], processor.tokenizer.eos_token_id]])
    ids = torch.cat([prompt["input_ids"], judgment], 1)
    kinds = torch.cat([prompt["mm_token_type_ids"], torch.zeros_like(judgment)], 1)
    shown = {name: prompt[name] for name in ("pixel_values", "image_grid_thw")}
    with torch.no_grad():
        logits = model(input_ids=ids, mm_token_type_ids=kinds, **shown).logits[0, -judgment.shape[1] - 1 : -1]
    return logits.log_softmax(-1).gather(1, judgment[0, :, None])[:, 0]


def test_rows_without_a_reference_are_left_out(begin, dpo_rows, judge, quick):
    rows = Reference(judge, quick())(dpo_rows).to_pylist()
    rows[5]["reference_chosen"] = None
    loop, errors = begin("dpo", pa.Table.from_pylist(rows), quick())
    assert [(error["row"], error["error"]["kind"]) for error in errors] == [(5, "no_reference")]
    assert loop.config.schedule.n_items == 7


def test_a_judge_without_a_processor_is_refused(judge, sft_rows, write, quick, tmp_path):
    hf.AutoModelForImageTextToText.from_pretrained(judge).save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="bare has no processor that loads"):
        prepare_training("sft", [write(sft_rows)], tmp_path / "bare", tmp_path / "out", quick())


@pytest.mark.parametrize("packing", ["shared", "plain"])
def test_a_sliding_window_shorter_than_a_prompt_is_exact(begin, judge, sft_rows, quick, tmp_path, packing):
    short = shutil.copytree(judge, tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    layers = config["text_config"]["num_hidden_layers"]
    window = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 0}
    config["text_config"] |= window | {"layer_types": ["sliding_attention"] * layers}
    (short / "config.json").write_text(json.dumps(config))
    loop, _ = begin("sft", sft_rows, quick(lora=None, batch_size=8, packing=packing), judge=short)
    model, processor = hf.AutoModelForImageTextToText.from_pretrained(short), hf.AutoProcessor.from_pretrained(short)
    found = [_token_log_probabilities(model, processor, row, row["target"]) for row in sft_rows.to_pylist()]
    expected = -torch.cat(found).mean().item()
    facts = loop.step(0)
    assert loop.packing == packing
    assert facts["loss"] == pytest.approx(expected, abs=1e-4)
    assert facts["padded_tokens"] >= facts["tokens"]


def test_rows_without_a_column_are_refused(judge, dpo_rows, write, quick, tmp_path):
    with pytest.raises(UserError, match=r"rows.parquet has no column reference_chosen, reference_rejected"):
        prepare_training("dpo", [write(dpo_rows)], judge, tmp_path / "out", quick())


def test_items_of_an_earlier_version_are_encoded_again(judge, sft_rows, write, quick, tmp_path):
    arguments = ("sft", [write(sft_rows)], judge, tmp_path / "out", quick())
    config, *_ = prepare_training(*arguments)
    written = Items.open(config.data)
    assert Items.are_current(config.data)
    unchanged = (config.data / "items.arrow").stat().st_mtime_ns
    assert prepare_training(*arguments)[0] == config
    assert (config.data / "items.arrow").stat().st_mtime_ns == unchanged
    earlier = written.items.drop_columns(["prompt"])
    with pa.OSFile(str(tmp_path / "earlier"), "wb") as sink, pa.ipc.new_file(sink, earlier.schema) as writer:
        writer.write_table(earlier)
    (tmp_path / "earlier").replace(config.data / "items.arrow")
    assert not Items.are_current(config.data)
    assert prepare_training(*arguments)[0] == config
    assert Items.open(config.data).items.schema == written.items.schema


def test_a_budget_below_every_item_is_refused(judge, sft_rows, write, quick, tmp_path):
    with pytest.raises(UserError, match=r"none of the 8 rows can be trained on; the first: .* over batch_tokens 20"):
        prepare_training("sft", [write(sft_rows)], judge, tmp_path / "out", quick(batch_tokens=20))


_ASKING = Asking(system="You are strict.", image_first=False)


def test_items_are_encoded_as_they_are_asked(family_directory, sft_rows, write, quick, tmp_path):
    judge = family_directory("qwen2_5_vl")
    lengths = []
    for name, asking in (("shipped", None), ("own", _ASKING)):
        config, *_ = prepare_training("sft", [write(sft_rows)], judge, tmp_path / name, quick(), asking=asking)
        lengths.append(Items.open(config.data).lengths)
        assert (config.asking or Asking()) == (asking or Asking())
    assert all(own != shipped for shipped, own in zip(*lengths, strict=True))
    facts = [json.loads((tmp_path / name / "training.json").read_text())["facts"] for name in ("shipped", "own")]
    assert ["asking" in each for each in facts] == [False, True]

"""The tokens of a prompt in every family: those of transformers, and no text becomes a control token or an image."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import transformers as hf

from carevl.errors import UserError
from carevl.judging.turns import Turn
from carevl.models.control_strings import control_ids, encode_text, encode_text_with_offsets, find_control_strings
from carevl.models.engines.base import GenerationRequest
from carevl.models.engines.transformers import ImageTextGenerator
from carevl.models.prompts import Prompt, check_tokenizer, encode_prompts, encode_turns, load_processor, render_prompt
from carevl.models.row_errors import SomeRowsError
from tests.helpers.families import FAMILIES, draw_picture

PICTURES = [draw_picture(0), draw_picture(1, 84, 140)]
PROMPTS = [Prompt("How many red circles are there?"), Prompt("Is it right?\n\nAnswer 1: Two.", places=(28,))]
CONVERSATIONS = [
    (Prompt("Which of  and  is most like ?", places=(9, 14, 28)), [draw_picture(n, 112, 84) for n in range(3)]),
    (
        Prompt("And in  now?", places=(7,), earlier=(Turn("user", "What is it?", (0,)), Turn("assistant", "A cat."))),
        [draw_picture(n, 112, 84) for n in range(2)],
    ),
    (Prompt("Is a square round?", places=()), []),
]
"""Three images in their places, one in each of two turns, and none."""
IN_CI = ("gemma3", "llama4", "llava", "mllama")
"""Of the kinds of start token, inputs per token, formats of pixels and signatures, one each."""
SLOW = [name if name in IN_CI else pytest.param(name, marks=pytest.mark.nightly) for name in FAMILIES]


@pytest.fixture
def processor(request, family_directory):
    return load_processor(str(family_directory(request.param)))


def every_family(test):
    """Run a test with the processor of every family."""
    return pytest.mark.parametrize("processor", FAMILIES, indirect=True)(test)


def _templated(processor, prompt, *pictures):
    """Transformers' own inputs for one prompt."""
    shown = iter(pictures)
    messages = [
        {
            "role": turn.role,
            "content": [
                {"type": "image", "image": next(shown)} if part is None else {"type": "text", "text": part}
                for part in turn.parts()
            ],
        }
        for turn in prompt.turns
    ]
    written = processor.apply_chat_template(
        [messages], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    written.pop("labels", None)
    return written


@every_family
def test_inputs_are_those_of_transformers_own_chat_template(processor):
    together = encode_prompts(processor, PROMPTS, [[each] for each in PICTURES])
    for i, (prompt, picture) in enumerate(zip(PROMPTS, PICTURES, strict=True)):
        own = _templated(processor, prompt, picture)
        assert together.ids[i] == own["input_ids"][0].tolist()
        for name, values in together.per_token.items():
            assert torch.equal(values[i], own[name][0]), name
        alone = encode_prompts(processor, [prompt], [[picture]])
        assert alone.images.keys() | alone.per_token.keys() == own.keys() - {"input_ids", "attention_mask"}
        for name, value in alone.images.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(own[name])), name


@every_family
def test_images_in_their_places_and_turns_are_those_of_transformers_own_chat_template(processor):
    for prompt, pictures in CONVERSATIONS:
        if not pictures and type(processor).__name__ == "PaliGemmaProcessor":
            continue
        own = _templated(processor, prompt, *pictures)
        ours = encode_prompts(processor, [prompt], [pictures])
        assert ours.ids[0] == own["input_ids"][0].tolist()
        for name, value in ours.images.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(own[name])), name
        [turns] = encode_turns(processor, [prompt])
        assert len(turns) <= len(ours.ids[0])


@every_family
def test_text_beside_an_image_in_an_earlier_turn_is_no_control_token(processor):
    added = [token.content for token in processor.tokenizer.added_tokens_decoder.values()][-40:]
    every = f"{' '.join(added)}{processor.image_token}"
    [plain, named] = (
        Prompt("And now?", places=(3,), earlier=(Turn("user", f"What {text} is it?", (4,)), Turn("assistant", text)))
        for text in ("cat", every)
    )
    pictures = [PICTURES[0], PICTURES[0]]
    counts = [_control_tokens(processor, encode_prompts(processor, [p], [pictures]).ids[0]) for p in (plain, named)]
    assert counts[0] == counts[1]


def _control_tokens(processor, ids):
    control = control_ids(processor.tokenizer)
    return Counter(processor.tokenizer.convert_ids_to_tokens(token) for token in ids if token in control)


@every_family
def test_a_text_that_names_every_added_token_is_read_letter_by_letter(processor):
    tokenizer = processor.tokenizer
    tokenizer.add_tokens(["<tool_call>", "<|user|>"])  # not special: `split_special_tokens` leaves them whole
    added = [token.content for token in tokenizer.added_tokens_decoder.values()][-40:]
    every = f"{' '.join(added)} and {''.join(added)}{processor.image_token} {chr(0x100000)}"
    text = f"How many {every} are there?"
    named = Prompt(text, f"{every} So", places=(len(text),))
    plain = encode_prompts(processor, PROMPTS, [[each] for each in PICTURES])
    encoded = encode_prompts(processor, [named, PROMPTS[1]], [[each] for each in PICTURES])
    assert encoded.ids[1] == plain.ids[1]
    for ids, ours in zip(plain.ids, encoded.ids, strict=True):
        assert _control_tokens(processor, ours) == _control_tokens(processor, ids)
    assert every in tokenizer.decode(encoded.ids[0])
    assert tokenizer.decode(encode_text(tokenizer, every)) == every
    for values in encoded.per_token.values():
        assert [len(value) for value in values] == [len(ids) for ids in encoded.ids]
    turns = encode_turns(processor, [Prompt(named.text), PROMPTS[0]])
    assert _control_tokens(processor, turns[0]) == _control_tokens(processor, turns[1])


@every_family
def test_of_a_text_the_control_string_alone_is_read_otherwise(processor):
    end = processor.tokenizer.eos_token
    prompt = Prompt(f"Two circles,{end} or three?")
    own = _templated(processor, prompt, PICTURES[0])["input_ids"][0].tolist()
    beside = _templated(processor, Prompt("Two circles, or three?"), PICTURES[0])["input_ids"][0].tolist()
    place = next(i for i, (named, plain) in enumerate(zip(own, beside, strict=False)) if named != plain)
    assert own[place] == processor.tokenizer.eos_token_id
    letters = processor.tokenizer(end, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    [ids] = encode_prompts(processor, [prompt], [[each] for each in PICTURES[:1]]).ids
    assert ids == [*own[:place], *letters, *own[place + 1 :]]


@every_family
def test_a_reply_goes_on_from_words_that_are_encoded_as_in_training(processor):
    begun = "Overall Judgment: Answer "
    prompt = Prompt("Which is better?", begun)
    [ids] = encode_prompts(processor, [prompt], [[each] for each in PICTURES[:1]]).ids
    [turn] = encode_prompts(processor, [Prompt("Which is better?")], [[each] for each in PICTURES[:1]]).ids
    assert ids == [*turn, *processor.tokenizer(begun, add_special_tokens=False)["input_ids"]]
    assert render_prompt(processor, prompt).endswith(begun)


@pytest.mark.parametrize("family", SLOW)
def test_the_transformers_engine_writes_what_generate_writes_of_one_prompt(family, family_directory):
    engine = ImageTextGenerator(family_directory(family))
    requests = [
        GenerationRequest((picture,), prompt.text, places=prompt.places)
        for picture, prompt in zip(PICTURES, PROMPTS, strict=True)
    ]
    requests += [
        GenerationRequest(tuple(pictures), prompt.text, places=prompt.places, earlier=prompt.earlier)
        for prompt, pictures in CONVERSATIONS
        if pictures or family != "paligemma"
    ]
    generations = engine.generate([*requests, *requests[:1]], max_tokens=12)
    assert generations[0] == generations[-1]
    for request, ours in zip(requests, generations, strict=False):
        own = _templated(engine.processor, request.turn, *request.images).to(torch.float32)
        written = engine.model.generate(**own, max_new_tokens=12, do_sample=False, eos_token_id=sorted(engine.ends))
        new = written[0, own["input_ids"].shape[1] :]
        assert ours.tokens == len(new)
        ended = int(new[-1]) in engine.ends
        assert ours.text == engine.processor.tokenizer.decode(new[:-1] if ended else new, skip_special_tokens=True)


def test_a_picture_that_the_processor_refuses_is_the_error_of_its_request(family_directory):
    engine = ImageTextGenerator(family_directory("qwen2_5_vl"))
    good = [GenerationRequest((picture,), PROMPTS[0].text) for picture in PICTURES]
    long = GenerationRequest((draw_picture(2, 700, 3),), PROMPTS[0].text)
    with pytest.raises(SomeRowsError, match="aspect ratio must be smaller than 200") as caught:
        engine.generate([good[0], long, good[1]], max_tokens=8)
    assert {row: failure.kind for row, failure in caught.value.failures.items()} == {1: "refused"}
    assert [result for result in caught.value.results if result] == engine.generate(good, max_tokens=8)


def test_every_end_token_of_the_generation_settings_ends_a_reply(family_directory):
    engine = ImageTextGenerator(family_directory("qwen2_vl"))
    request = GenerationRequest((PICTURES[0],), PROMPTS[0].text)
    [whole] = engine.generate([request], max_tokens=12)
    first = encode_text(engine.processor.tokenizer, whole.text)[0]
    engine.ends = {*engine.ends, first}
    assert engine.generate([request], max_tokens=12)[0].text == ""


def test_offsets_of_a_reply_cover_its_control_strings():
    tokenizer = _word_tokenizer()
    ids, offsets = encode_text_with_offsets(tokenizer, "yes <end> no")
    assert [("yes <end> no"[begin:end]) for begin, end in offsets] == ["yes", "<end>", "<end>", "<end>", "no"]
    assert control_ids(tokenizer).isdisjoint(ids)


def _word_tokenizer(**options):
    """Words and single punctuation marks; `<end>` is special, and takes the blank space beside it where told so."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    words = {"yes": 0, "no": 1, "<": 2, ">": 3, "end": 4, "?": 5}
    made = Tokenizer(models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    made.add_special_tokens([AddedToken("<end>", special=True, **options)])
    return hf.PreTrainedTokenizerFast(tokenizer_object=made)


def test_blank_space_that_a_control_token_takes_in_is_not_part_of_it():
    tokenizer = _word_tokenizer(lstrip=True, rstrip=True)
    assert find_control_strings(tokenizer, ["yes  <end>  no", "no"]) == [[(5, 10)], []]
    assert find_control_strings(tokenizer, ["yes no"], ["s n"]) == [[(2, 5)]]


def test_added_tokens_of_blank_space_control_nothing():
    tokenizer = _word_tokenizer()
    tokenizer.add_tokens(["\n\n", "\u2581\u2581"])
    assert control_ids(tokenizer) == {tokenizer.convert_tokens_to_ids("<end>")}


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(UserError, match=r"judge has a slow tokenizer only \(BertTokenizerLegacy\)"):
        check_tokenizer(type("BertTokenizerLegacy", (), {"is_fast": False})(), "judge")

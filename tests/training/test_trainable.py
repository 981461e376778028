"""What of a judge is trained, by walking its modules."""

import pytest
import torch
import transformers as hf

from carevl.errors import SettingsError, UserError
from carevl.settings.loader import fill
from carevl.settings.training import Lora, Training
from carevl.training.skeleton import load_skeleton
from carevl.training.trainable import (
    TrainedParts,
    changed_weights,
    describe_trained,
    find_lora_modules,
    lora_config,
    make_trainable,
)

LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def _training(train="language", **lora):
    return Training(lora=Lora(rank=4, alpha=8, **lora), train=train)


def test_by_default_every_linear_layer_of_the_language_model_has_an_adapter_and_no_other(judge):
    modules = find_lora_modules(load_skeleton(judge), _training())
    layers = load_skeleton(judge).config.get_text_config().num_hidden_layers
    assert len(modules.linear) == layers * len(LINEAR)
    assert {name.rpartition(".")[2] for name in modules.linear} == LINEAR
    assert all(name.startswith("model.language_model.") for name in modules.linear)
    assert modules.experts == []


@pytest.mark.parametrize(("train", "inside"), [("language+projector", "merger.mlp.0"), ("all", "attn.qkv")])
def test_the_projector_and_the_vision_tower_have_adapters_where_that_is_asked_for(judge, train, inside):
    skeleton = load_skeleton(judge)
    modules = find_lora_modules(skeleton, _training(train)).linear
    assert set(find_lora_modules(skeleton, _training()).linear) < set(modules)
    assert any(name.endswith(inside) for name in modules)
    assert any(name.endswith("attn.qkv") for name in modules) == (train == "all")


def test_targets_are_looked_for_in_what_is_trained(judge):
    skeleton = load_skeleton(judge)
    assert {name.rpartition(".")[2] for name in find_lora_modules(skeleton, _training(targets=["v_proj"])).linear} == {
        "v_proj"
    }
    assert any(".visual." in name for name in find_lora_modules(skeleton, _training("all", targets=["qkv"])).linear)
    with pytest.raises(UserError, match="qkv matches no linear module"):
        find_lora_modules(skeleton, _training(targets=["q_proj", "qkv"]))
    with pytest.raises(UserError, match=r"lora.targets: query_proj matches no linear module .* near are .*q_proj"):
        find_lora_modules(skeleton, _training(targets=["q_proj", "query_proj"]))


@pytest.mark.parametrize("train", ["language", "language+projector", "all"])
@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8), None])
def test_what_is_described_is_what_is_trained(judge, train, lora, tmp_path):
    training = Training(lora=lora, train=train)
    described = describe_trained(load_skeleton(judge), training)
    model = hf.AutoModelForImageTextToText.from_pretrained(judge)
    before = dict(model.named_parameters())
    changed = changed_weights(model, training)
    trained = make_trainable(model, training)
    learned = [(name, weight) for name, weight in trained.named_parameters() if weight.requires_grad]
    assert described.trained == len(changed)
    assert described.tensors == len(before)
    vision = [name for name in before if ".visual." in name]
    assert described.vision + described.projector == len(vision)
    assert described.vision_frozen + described.projector_frozen == sum(name not in changed for name in vision)
    assert described.projector_frozen == described.projector or train != "language"
    if lora is None:
        assert {name for name, _ in learned} == changed
        assert f"trains {len(changed)} of {len(before)} tensors ({train})" in described.line()
    else:
        assert described.lora_modules == sum(".lora_A." in name for name, _ in learned) == len(changed)
        assert described.lora_parameters == sum(weight.numel() for _, weight in learned)
        assert f"trains {len(changed)} adapters" in described.line()
    described.write(tmp_path / "trained.json")
    assert TrainedParts.read(tmp_path / "trained.json") == described
    assert TrainedParts.read(tmp_path / "nothing.json") is None


def test_a_subclass_of_a_linear_layer_gets_no_adapter(judge):
    class Router(torch.nn.Linear):
        pass

    model = load_skeleton(judge)
    layer = model.get_decoder().layers[0]
    with torch.device("meta"):
        layer.mlp.gate_proj = Router(8, 8)
    names = find_lora_modules(model, _training()).linear
    assert "model.language_model.layers.0.mlp.up_proj" in names
    assert "model.language_model.layers.0.mlp.gate_proj" not in names


def test_a_part_in_which_there_is_nothing_to_train_is_refused(judge):
    model = load_skeleton(judge)
    del model.model.visual.merger
    for training in (_training("language+projector"), Training(lora=None, train="language+projector")):
        with pytest.raises(UserError, match=r"train: language\+projector: no .* are known as its projector"):
            describe_trained(model, training)


def test_settings_of_an_earlier_version_are_read_and_have_the_facts_that_they_had():
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    old = {"freeze_vision": True, "lora": {"rank": 32, "alpha": 64.0, "dropout": 0.0, "targets": targets}}
    training = fill(Training, dict(old), [])
    assert (training.train, training.lora.targets) == ("language", None)
    assert old.items() <= training.learned().items()
    assert "train" not in training.learned()
    whole = fill(Training, {"freeze_vision": False, "lora": {"targets": ["q_proj"]}}, [])
    assert (whole.train, whole.lora.targets, whole.learned()["freeze_vision"]) == ("all", ["q_proj"], False)
    # Where null means more than those names, the names are another training.
    named = Training(lora=Lora(targets=targets))
    assert named.learned() != Training().learned()
    assert Training(train="language+projector").learned()["train"] == "language+projector"
    with pytest.raises(SettingsError, match="write train: language for true, train: all for false"):
        fill(Training, {"train": "all", "freeze_vision": True}, [])


def test_what_cannot_have_dropout_is_refused_with_it(family_directory):
    mixture = load_skeleton(family_directory("qwen3_vl_moe"))
    with pytest.raises(
        UserError, match=r"lora.dropout: PEFT cannot drop inputs of .*experts.gate_up_proj; set it to 0"
    ):
        find_lora_modules(mixture, _training(dropout=0.1))
    attention = find_lora_modules(mixture, _training(dropout=0.1, targets=["q_proj"]))
    assert attention.linear
    assert attention.experts == []
    glm = load_skeleton(family_directory("glm4v_moe"))
    with pytest.raises(UserError, match=r"lora.dropout: PEFT cannot drop inputs of .*mlp.gate_proj"):
        find_lora_modules(glm, _training(dropout=0.1, targets=["gate_proj", "up_proj"]))


def test_layers_that_peft_takes_for_experts_are_adapted_as_weights(family_directory):
    model = load_skeleton(family_directory("glm4v_moe"))
    modules, config = find_lora_modules(model, _training()), lora_config(model, _training())
    dense = [name for name in modules.linear if ".mlp." in name]
    assert any(".shared_experts." in name for name in dense)
    assert sorted(config.target_parameters) == sorted([*modules.experts, *(f"{name}.weight" for name in dense)])
    assert set(config.target_modules) == set(modules.linear) - set(dense)

"""Models from strangers: nothing in them is run."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BertConfig, CLIPConfig

from sweep.options import SweepOptions
from sweep.plan import make_plan
from tests.helpers import refusal, refused_command
from tests.hostile.models import Payload, add_code, change
from trainables.encoders import EncoderForClassification, count_parameters, load_encoder
from trainables.exported_model import ClassifierCard, export_model, load_exported_model
from trainables.own_config import without_foreign_code

TEXTS = ["a fine film"]


@pytest.fixture
def model(encoder_folder, tmp_path):
    return shutil.copytree(encoder_folder, tmp_path / "model")


@pytest.fixture
def proof(tmp_path):
    """A folder that hostile code would make."""
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists()


def both_refusals(model):
    """The lines with which a model is refused for the plan, and when it is loaded."""
    return refusal(count_parameters, str(model)), refusal(load_encoder, str(model), TEXTS)


def test_code_of_a_known_model_is_left_alone_and_a_model_that_needs_it_is_refused(model, proof):
    add_code(model, proof)
    assert load_encoder(str(model), TEXTS).tokenizer()(TEXTS)["input_ids"]
    add_code(model, proof, model_type="evil")
    assert all("cannot be loaded" in reason for reason in both_refusals(model))
    assert refused_command(["verify", "--models", str(model)])


def test_weights_are_never_unpickled(model, proof):
    (model / "model.safetensors").unlink()
    torch.save({"weight": Payload(proof)}, model / "pytorch_model.bin")
    assert "cannot be loaded" in refusal(load_encoder, str(model), TEXTS)


@pytest.mark.parametrize(
    "config",
    [
        "",
        "[]",
        '{"model_type": "nothing"}',
        '{"model_type": "bert", "hidden_size": -3}',
        '{"model_type": "bert", "max_position_embeddings": "many"}',
        '{"model_type": "bert", "num_hidden_layers": "../../x"}',
        '{"model_type": "t5"}',
        '{"model_type": "clip"}',
        '{"model_type": "vit"}',
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
)
def test_a_config_of_anything_else_is_one_line(model, config):
    (model / "config.json").write_text(config)
    assert refusal(make_plan, SweepOptions(space="fixed_lr", demo=True, models=[str(model)]), False)
    assert refused_command(["verify", "--models", str(model)])


@pytest.fixture
def exported(encoder_folder, tmp_path):
    assets = load_encoder(str(encoder_folder), TEXTS)
    classifier = EncoderForClassification(AutoConfig.for_model(**assets.config), 2, 0.1, seed=1)
    save_file(classifier.state_dict(), tmp_path / "weights")
    card = ClassifierCard("tiny", ("no", "yes"), 16, 0.1, "0" * 12, 1, 0.5)
    export_model(tmp_path / "exported", tmp_path / "weights", assets, card)
    return tmp_path / "exported"


def test_code_beside_an_exported_model_is_left_alone_and_one_that_needs_it_is_refused(exported, proof):
    add_code(exported, proof)
    assert load_exported_model(exported).predict(TEXTS)["label"][0] in {"no", "yes"}
    add_code(exported, proof, model_type="evil")
    with pytest.raises(ValueError, match=r"trust_remote_code|custom code"):
        load_exported_model(exported)


# -- what a model's folder may ask for --------------------------------------------------------------


FOREIGN = ("org/kernel", "org/kernel:f", "flash_attention_2", "paged|sdpa", 7, {"": "org/kernel"})
KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", FOREIGN, ids=str)
def test_a_kernel_that_is_not_pytorchs_is_read_as_if_nothing_was_said(model, exported, key, value):
    expected = load_encoder(str(model), TEXTS)
    scores = load_exported_model(exported).predict(TEXTS)["score"]
    change(model, **{key: value})
    change(exported, **{key: value})
    assert count_parameters(str(model))
    assert load_encoder(str(model), TEXTS).config == expected.config
    assert (load_exported_model(exported).predict(TEXTS)["score"] == scores).all()


def test_the_kernels_of_an_encoder_inside_another_config_are_looked_at_too():
    text = BertConfig(attn_implementation="org/kernel")
    config = CLIPConfig(attn_implementation={"text_config": "org/kernel", "vision_config": "eager"})
    config.text_config.inner = text
    without_foreign_code(config)
    assert (config.text_config._attn_implementation, text._attn_implementation) == (None, None)
    assert config.vision_config._attn_implementation == "eager"


def test_code_and_kernels_are_not_handed_on(model, proof):
    add_code(model, proof)
    change(model, attn_implementation="org/kernel")
    assets = load_encoder(str(model), TEXTS)
    everything = json.dumps(assets.config) + "".join(
        content.decode() for name, content in assets.tokenizer_files.items() if name.endswith(".json")
    )
    assert "auto_map" not in everything
    assert "org/kernel" not in everything


def test_quantised_weights_are_refused(model):
    change(model, quantization_config={"quant_method": "finegrained_fp8"})
    assert all("quantised weights are not trained" in reason for reason in both_refusals(model))


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("place", ["../mine/model.safetensors", "{}/mine/model.safetensors"])
def test_a_model_reads_no_weights_outside_its_folder(model, tmp_path, index, place):
    (tmp_path / "mine").mkdir()
    (model / "model.safetensors").rename(tmp_path / "mine" / "model.safetensors")
    names = load_file(tmp_path / "mine" / "model.safetensors")
    weight_map = dict.fromkeys(names, place.format(tmp_path))
    (model / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert all(f"{index} in {model} names '" in reason for reason in both_refusals(model))


def test_a_model_may_name_its_own_weights(model):
    names = load_file(model / "model.safetensors")
    (model / "model.safetensors").rename(model / "one-of-one.safetensors")
    weight_map = dict.fromkeys(names, "one-of-one.safetensors")
    change(model, "model.safetensors.index.json", metadata={}, weight_map=weight_map)
    assert load_encoder(str(model), TEXTS)


@pytest.mark.parametrize("key", ["vocab", "init_inputs"])
def test_a_tokenizer_reads_no_vocabulary_outside_its_folder(model, exported, tmp_path, key):
    secret = tmp_path / "secret.txt"
    secret.write_text("[UNK]\n[PAD]\nmine\n")
    for folder in (model, exported):
        (folder / "tokenizer.json").unlink()
        value = [str(secret)] if key == "init_inputs" else str(secret)
        change(folder, "tokenizer_config.json", tokenizer_class="BertTokenizer", **{key: value})
    assert f"names '{secret}'" in refusal(load_encoder, str(model), TEXTS)
    assert f"names '{secret}'" in refusal(load_exported_model, exported)


def test_an_adapter_does_not_bring_another_model(model):
    change(model, "adapter_config.json", base_model_name_or_path="org/other")
    assert "holds an adapter of another model" in refusal(count_parameters, str(model))


@pytest.mark.parametrize("depth", [900, 100_000])
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"]
)
def test_deeply_nested_json_in_a_model_is_one_line(model, name, depth):
    if "index" in name:
        (model / "model.safetensors").unlink()
    (model / name).write_text('{"a":' * depth + "1" + "}" * depth)
    assert "cannot be" in refusal(load_encoder, str(model), TEXTS)

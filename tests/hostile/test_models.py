"""Models from strangers: nothing in them is run."""

import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

import tune_main
from sweep.options import SweepOptions
from sweep.plan import make_plan
from tests.helpers import refusal
from tests.hostile.models import Payload, add_code
from trainables.encoders import EncoderForClassification, count_parameters, load_encoder
from trainables.exported_model import ClassifierCard, export_model, load_exported_model

TEXTS = ["a fine film"]


@pytest.fixture
def model(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.fixture
def proof(tmp_path):
    """A folder that hostile code would make."""
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists()


def test_code_that_a_known_model_brings_is_left_alone_and_a_model_that_needs_it_is_refused(
    model, proof, capsys
):
    add_code(model, proof)
    assert load_encoder(str(model), TEXTS).tokenizer()(TEXTS)["input_ids"]
    add_code(model, proof, model_type="evil")
    for reason in (refusal(count_parameters, str(model)), refusal(load_encoder, str(model), TEXTS)):
        assert "cannot be loaded" in reason
    capsys.readouterr()
    assert tune_main.main(["verify", "--models", str(model)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


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
def test_a_config_of_anything_else_is_one_line(model, config, capsys):
    (model / "config.json").write_text(config)
    options = SweepOptions(space="fixed_lr", demo=True, models=[str(model)])
    refusal(make_plan, options, False)
    assert tune_main.main(["verify", "--models", str(model)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def exported(tiny_folder, tmp_path):
    assets = load_encoder(str(tiny_folder), TEXTS)
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

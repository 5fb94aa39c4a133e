"""Models and checkpoints from strangers: nothing in them is run."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

import tune_main
from errors import UserError
from sweep.options import SweepOptions
from sweep.plan import make_plan
from tests.helpers import message
from tests.hostile.models import Payload, add_code
from trainables.checkpoint import Checkpoint, CorruptCheckpointError, read_progress, verified_files
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


def refused(load, *arguments):
    with pytest.raises(UserError) as raised:
        load(*arguments)
    return message(raised)


def test_code_that_a_known_model_brings_is_left_alone(model, proof):
    add_code(model, proof)
    assert load_encoder(str(model), TEXTS).tokenizer()(TEXTS)["input_ids"]


def test_a_model_that_needs_its_own_code_is_refused(model, proof, capsys):
    add_code(model, proof, model_type="evil")
    for load in (count_parameters, lambda name: load_encoder(name, TEXTS)):
        assert "cannot be loaded" in refused(load, str(model))
    assert tune_main.main(["verify", "--models", str(model)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_weights_are_never_unpickled(model, proof):
    (model / "model.safetensors").unlink()
    torch.save({"weight": Payload(proof)}, model / "pytorch_model.bin")
    assert "cannot be loaded" in refused(load_encoder, str(model), TEXTS)


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
    refused(make_plan, options, False)
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


def test_code_beside_an_exported_model_is_left_alone(exported, proof):
    add_code(exported, proof)
    assert load_exported_model(exported).predict(TEXTS)["label"][0] in {"no", "yes"}


def test_an_exported_model_that_needs_its_own_code_is_refused(exported, proof):
    add_code(exported, proof, model_type="evil")
    with pytest.raises(ValueError, match=r"trust_remote_code|custom code"):
        load_exported_model(exported)


def write_checkpoint(folder, **files):
    """A checkpoint whose manifest is right, whatever its files hold."""
    folder.mkdir()
    weights = {"a": torch.zeros(2)}
    Checkpoint("0" * 12, "d", [], weights, None, {}, {}).save(folder)
    for name, write in files.items():
        write(folder / name.replace("__", "."))
    names = [path.name for path in folder.iterdir() if path.name != "manifest.json"]
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "manifest.json").write_text(json.dumps(digests))
    return folder


def test_a_whole_checkpoint_is_loaded(tmp_path):
    assert Checkpoint.load(write_checkpoint(tmp_path / "c")).trial_hash == "0" * 12


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("progress__json", b"{}"),
        ("progress__json", b"[]"),
        ("progress__json", b"\xff"),
        ("last_weights__safetensors", b"\xff" * 40),
        ("optimizer__pt", b""),
        ("optimizer__pt", b"\x80\x04."),
    ],
)
def test_a_checkpoint_of_something_else_is_corrupt(tmp_path, name, content):
    folder = write_checkpoint(tmp_path / "c", **{name: lambda path: path.write_bytes(content)})
    with pytest.raises(CorruptCheckpointError) as raised:
        Checkpoint.load(folder)
    message(raised)
    if name == "progress__json":
        with pytest.raises(CorruptCheckpointError):
            read_progress(folder)


def test_code_in_an_optimizers_state_is_not_run(tmp_path, proof):
    write = {"optimizer__pt": lambda path: torch.save([Payload(proof), {}], path)}
    with pytest.raises(CorruptCheckpointError):
        Checkpoint.load(write_checkpoint(tmp_path / "c", **write))


def test_a_manifest_names_no_file_outside(tmp_path):
    folder = write_checkpoint(tmp_path / "c")
    (tmp_path / "secret").write_text("x")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["../secret"] = hashlib.sha256(b"x").hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptCheckpointError):
        verified_files(folder)

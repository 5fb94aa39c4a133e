import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.helpers import TINY_MODELS, assert_identical, tiny_config, trained
from trainables.checkpoint import Checkpoint, CorruptCheckpointError, verified_files, weight_files
from trainables.evaluation import evaluate
from trainables.exported_model import ClassifierCard, _load_pyfunc, export_model, load_exported_model

FILES = [
    "manifest.json",
    "last_weights.safetensors",
    "best_weights.safetensors",
    "optimizer.pt",
    "progress.json",
]


def checkpoint(number=1.0, best=0.5):
    return Checkpoint(
        trial_hash="0123456789ab",
        assets_digest="fedcba",
        history=[{"epoch": 1, "val_acc": 0.75, "step_curve": [[1, 0.7, 0.5]]}],
        weights={"weight": torch.full((3, 4), number)},
        best_weights=None if best is None else {"weight": torch.full((3, 4), best)},
        optimizer={"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]},
        scheduler={"last_epoch": 1},
    )


@pytest.fixture
def folder(tmp_path):
    checkpoint().save(tmp_path)
    return tmp_path


# -- complete and verified, or not at all ----------------------------------------------------------


@pytest.mark.parametrize("best", [0.5, None])
def test_what_was_saved_is_loaded(tmp_path, best):
    original = checkpoint(best=best)
    original.save(tmp_path)
    loaded = Checkpoint.load(tmp_path)
    assert_identical(loaded.weights, original.weights)
    assert (loaded.best_weights is None) == (best is None)
    if best is not None:
        assert_identical(loaded.best_weights, original.best_weights)
    assert_identical(loaded.optimizer["state"], original.optimizer["state"])
    assert loaded.optimizer["param_groups"] == original.optimizer["param_groups"]
    assert (loaded.scheduler, loaded.history) == (original.scheduler, original.history)
    assert loaded.trial_hash == original.trial_hash


def test_a_checkpoint_is_these_files_and_no_others(folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert sorted([*verified_files(folder), "manifest.json"]) == sorted(FILES)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def alter(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, alter, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_recognised(folder, name, damage):
    Checkpoint.load(folder)
    damage(folder / name)
    with pytest.raises(CorruptCheckpointError):
        Checkpoint.load(folder)


def test_a_file_that_the_disk_does_not_give_out_is_recognised(folder):
    # reading a process's memory at 0 is an input/output error that does not need a broken disk
    (folder / "last_weights.safetensors").unlink()
    (folder / "last_weights.safetensors").symlink_to("/proc/self/mem")
    with pytest.raises(CorruptCheckpointError, match="cannot be read: Input/output error"):
        verified_files(folder)


@pytest.mark.parametrize("manifest", ["", "null", "[]", "{}", '"text"', '{"progress.json": 1}', "\udcff"])
def test_a_manifest_that_save_did_not_write_is_recognised(folder, manifest):
    (folder / "manifest.json").write_text(manifest, errors="surrogateescape")
    with pytest.raises(CorruptCheckpointError):
        Checkpoint.load(folder)


def test_a_missing_or_empty_folder_is_no_checkpoint(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CorruptCheckpointError, match="no complete checkpoint"):
            Checkpoint.load(folder)


def test_a_save_that_fails_half_way_leaves_nothing_that_loads(folder):
    broken = checkpoint(2.0)
    broken.scheduler["function"] = lambda: None  # cannot be pickled
    with pytest.raises((AttributeError, pickle.PicklingError)):
        broken.save(folder)
    with pytest.raises(CorruptCheckpointError):
        Checkpoint.load(folder)


def test_saving_over_an_older_checkpoint_leaves_nothing_of_it(folder):
    checkpoint(2.0, best=None).save(folder)
    loaded = Checkpoint.load(folder)
    assert loaded.best_weights is None
    assert loaded.weights["weight"].unique().tolist() == [2.0]


def test_weight_files_are_one_where_the_best_epoch_is_the_last(tmp_path, folder):
    assert {k: path.name for k, path in weight_files(folder).items()} == {
        "best": "best_weights.safetensors",
        "last": "last_weights.safetensors",
    }
    checkpoint(best=None).save(folder)
    assert {path.name for path in weight_files(folder).values()} == {"last_weights.safetensors"}


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_executed(folder, tmp_path_factory):
    proof = tmp_path_factory.mktemp("payload") / "executed"
    poisoned = folder / "optimizer.pt"
    torch.save([Payload(proof), {}], poisoned)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["optimizer.pt"] = hashlib.sha256(poisoned.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptCheckpointError, match="Weights only load failed"):
        Checkpoint.load(folder)
    assert not proof.exists()
    torch.load(poisoned, weights_only=False)
    assert proof.exists()  # so the payload does work


# -- the exported model ----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=TINY_MODELS)
def exported(request, assets, splits, tmp_path_factory):
    """A trained trial, the folder that its weights were exported to, and its val texts."""
    model = request.param
    trial = trained(tiny_config(model=model, epochs=1), assets[model])
    checkpoint_folder = tmp_path_factory.mktemp("checkpoint")
    trial.save(checkpoint_folder)
    card = ClassifierCard(
        model=model,
        label_names=splits.label_names,
        max_length=trial.config.max_length,
        dropout=trial.config.head_dropout,
        trial_hash=trial.config.trial_hash,
        epoch=1,
        val_acc=trial.history[0]["val_acc"],
    )
    folder = tmp_path_factory.mktemp("export") / "model"
    export_model(folder, weight_files(checkpoint_folder)["best"], assets[model].encoder, card)
    return trial, folder, splits.val.texts


def test_exported_model_predicts_what_the_trial_predicts(exported):
    trial, folder, texts = exported
    expected = evaluate(trial.model, trial.val, "fp32")
    predicted = load_exported_model(folder).predict(texts)
    assert list(predicted.columns) == ["label", "score"]
    names = np.array(["negative", "positive"])
    assert predicted["label"].tolist() == names[expected.predictions].tolist()
    np.testing.assert_allclose(predicted["score"], expected.probabilities.max(axis=1), rtol=0, atol=1e-6)


def test_exported_model_knows_where_it_came_from(exported):
    trial, folder, _ = exported
    card = load_exported_model(folder).card
    assert card.trial_hash == trial.config.trial_hash
    assert card.label_names == ("negative", "positive")
    assert (card.epoch, card.val_acc) == (1, trial.history[0]["val_acc"])


def test_exported_model_takes_a_text_a_list_and_a_column(exported):
    _, folder, texts = exported
    model = _load_pyfunc(str(folder))  # as MLflow's generic Python flavour does
    several = model.predict(texts[:5])
    assert len(several) == 5
    for same in (
        pd.DataFrame({"review": texts[:5]}),
        pd.Series(texts[:5], index=range(7, 12)),
        np.array(texts[:5]),
        tuple(texts[:5]),
    ):
        pd.testing.assert_frame_equal(model.predict(same), several)
    one = model.predict(texts[0])
    assert len(one) == 1
    assert one["label"][0] == several["label"][0]
    assert one["score"][0] == pytest.approx(several["score"][0], abs=1e-6)


def test_exported_folder_holds_nothing_that_is_unpickled(exported):
    _, folder, _ = exported
    assert {path.suffix for path in folder.iterdir()} <= {".safetensors", ".json", ".txt", ".jinja"}


def test_an_export_never_overwrites(exported, assets):
    trial, folder, _ = exported
    with pytest.raises(FileExistsError):
        export_model(folder, folder / "model.safetensors", assets[trial.config.model].encoder, None)

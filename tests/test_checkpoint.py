"""Whatever happens to a trial's folder, the newest whole checkpoint is found, or none."""

import hashlib
import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers import CPU, assert_identical, learnt, message, tiny_config
from tests.hostile.models import Payload
from trainables.checkpoint import (
    Checkpoint,
    CorruptCheckpointError,
    TrialFolder,
    read_progress,
    verify,
    weight_files,
)
from trainables.trial import Trial

WEIGHTS = {"last": "last_weights.safetensors", "best": "best_weights.safetensors"}
FILES = {*WEIGHTS.values(), "manifest.json", "optimizer.pt", "progress.json"}


def checkpoint():
    return Checkpoint(
        trial_hash="0123456789ab",
        assets_digest="fedcba",
        history=[{"evaluation": 1, "epoch": 1, "val_acc": 0.75, "step_curve": [[1, 0.7, 0.5]]}],
        weights={"weight": torch.full((3, 4), 1.0)},
        best_weights={"weight": torch.full((3, 4), 0.5)},
        optimizer={"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]},
        scheduler={"last_epoch": 1},
    )


@pytest.fixture
def written(tmp_path):
    """The folder of one checkpoint."""
    checkpoint().save(tmp_path)
    return tmp_path


def test_what_was_saved_is_loaded(written):
    verify(written)
    loaded, original = Checkpoint.load(written), checkpoint()
    assert {path.name for path in written.iterdir()} == FILES
    assert {which: path.name for which, path in weight_files(written).items()} == WEIGHTS
    for name in ("weights", "best_weights", "optimizer"):
        assert_identical(getattr(loaded, name), getattr(original, name))
    for name in ("trial_hash", "assets_digest", "history", "scheduler"):
        assert getattr(loaded, name) == getattr(original, name)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def unreadable(path):
    """Reading a process's memory at 0 is an input/output error that does not need a broken disk."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


@pytest.mark.parametrize("damage", [truncate, Path.unlink, unreadable])
@pytest.mark.parametrize("name", sorted(FILES))
def test_a_damaged_checkpoint_is_recognised(written, name, damage):
    damage(written / name)
    with pytest.raises(CorruptCheckpointError, match=r"no complete|changed since|cannot be read"):
        verify(written)


@pytest.mark.parametrize("manifest", ["", "null", "[]", "{}", '"text"', '{"progress.json": 1}', "\udcff"])
def test_a_manifest_that_save_did_not_write_is_recognised(written, manifest):
    (written / "manifest.json").write_text(manifest, errors="surrogateescape")
    with pytest.raises(CorruptCheckpointError):
        verify(written)


def signed(folder, **digests):
    """Let the manifest vouch for whatever is in the folder."""
    files = {path.name: path for path in folder.iterdir() if path.name != "manifest.json"}
    digests |= {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    (folder / "manifest.json").write_text(json.dumps(digests))


def test_a_manifest_names_the_files_of_its_folder_and_no_others(written, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_text("x")
    signed(written, **{f"../{secret.parent.name}/secret": hashlib.sha256(b"x").hexdigest()})
    with pytest.raises(CorruptCheckpointError):
        verify(written)
    signed(written)
    verify(written)
    shutil.copy(written / WEIGHTS["last"], written / "strange.safetensors")
    for sign in (False, True):
        if sign:
            signed(written)
        with pytest.raises(CorruptCheckpointError):
            verify(written)


def test_a_missing_an_empty_and_a_half_written_folder_are_no_checkpoint(tmp_path):
    (tmp_path / "half").mkdir()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        replace(checkpoint(), scheduler={"function": lambda: None}).save(tmp_path / "half")
    for folder in (tmp_path, tmp_path / "absent", tmp_path / "half"):
        with pytest.raises(CorruptCheckpointError, match="no complete checkpoint"):
            verify(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("progress.json", content) for content in (b"{}", b"[]", b"\xff")),
        ("last_weights.safetensors", b"\xff" * 40),
        *(("optimizer.pt", content) for content in (b"", b"\x80\x04.")),
    ],
)
def test_a_whole_file_that_holds_something_else_is_one_line(written, name, content):
    (written / name).write_bytes(content)
    signed(written)
    for read in [Checkpoint.load] + [read_progress] * (name == "progress.json"):
        with pytest.raises(CorruptCheckpointError) as raised:
            read(written)
        assert message(raised)


def test_code_in_a_checkpoint_is_not_executed(written, tmp_path_factory):
    proof = tmp_path_factory.mktemp("payload") / "executed"
    torch.save([Payload(proof), {}], written / "optimizer.pt")
    signed(written)
    verify(written)
    with pytest.raises(CorruptCheckpointError, match="Weights only load failed"):
        Checkpoint.load(written)
    assert not proof.exists()
    torch.load(written / "optimizer.pt", weights_only=False)
    assert proof.exists()  # so the payload does work


CONFIG = tiny_config(epochs=3, train_size=64)


@pytest.fixture(scope="module")
def finished(assets, tmp_path_factory):
    """The folder of a trial after each of three epochs, and the trial that was never interrupted."""
    folder = TrialFolder(tmp_path_factory.mktemp("storage"), CONFIG.trial_hash)
    trial = Trial(CONFIG, assets["bert-tiny"], CPU)
    while not trial.is_finished:
        folder.save(trial.run_to_evaluation()["evaluation"], trial.save)
    return folder, trial


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of its own for every test."""
    shutil.copytree(finished[0].path, tmp_path / CONFIG.trial_hash)
    return TrialFolder(tmp_path, CONFIG.trial_hash)


@pytest.fixture
def digest(assets):
    return assets["bert-tiny"].digest


def names(folder):
    return sorted(path.name for path in folder.path.iterdir())


def test_only_a_finished_trials_checkpoint_may_lack_the_optimizers_state(folder, digest, assets, finished):
    older, last = (folder.path / name for name in names(folder))
    assert Checkpoint.load(older).optimizer["state"]
    assert (Checkpoint.load(last).optimizer, Checkpoint.load(last).scheduler) == (None, None)
    trial = Trial(CONFIG, assets["bert-tiny"], CPU)
    trial.restore(folder.newest(digest).folder)
    assert trial.is_finished
    assert learnt(trial) == learnt(finished[1])
    (older / "optimizer.pt").unlink()
    with pytest.raises(CorruptCheckpointError, match="lacks the optimizer's state"):
        Trial(CONFIG, assets["bert-tiny"], CPU).restore(older)


def test_a_damaged_one_is_named_and_written_again_in_its_place(folder, digest, finished):
    assert not folder.newest(digest).damaged
    weights = folder.path / "evaluation-000003" / "last_weights.safetensors"
    truncate(weights)
    found = folder.newest(digest)
    assert found.folder.name == "evaluation-000002"
    assert [str(weights) in line for line in found.damaged] == [True]
    folder.save(3, finished[1].save)
    assert folder.newest(digest).folder.name == "evaluation-000003"


def test_other_weights_or_tokens_and_other_trials_are_left_out(folder, digest):
    found = folder.newest("another digest")
    assert found.folder is None
    assert len(found.damaged) == 2
    assert "was trained from other pretrained weights or tokens" in found.damaged[0]
    other = TrialFolder(folder.path.parent, CONFIG.replace(seed=43).trial_hash)
    shutil.copytree(folder.path, other.path)
    found = other.newest(digest)
    assert found.folder is None
    assert f"belongs to trial {CONFIG.trial_hash}, not {other.trial_hash}" in found.damaged[0]


def interrupted(partial):
    raise KeyboardInterrupt


def full_disk(partial):
    (partial / "last_weights.safetensors").write_bytes(b"half")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("write", "error"), [(full_disk, OSError), (interrupted, KeyboardInterrupt)])
def test_a_write_that_fails_leaves_the_good_one_and_not_a_damaged_newer_one(folder, digest, write, error):
    with pytest.raises(error):
        folder.save(4, write)
    assert names(folder) == ["evaluation-000003"]
    shutil.copytree(folder.path / "evaluation-000003", folder.path / "evaluation-000004")
    (folder.path / "evaluation-000004" / "progress.json").write_text("{}")
    again = TrialFolder(folder.path.parent, CONFIG.trial_hash)
    assert again.newest(digest).folder.name == "evaluation-000003"
    with pytest.raises(error):
        again.save(4, write)
    assert names(folder) == ["evaluation-000003"]


def test_what_a_killed_worker_left_is_not_taken_for_a_checkpoint(folder, digest):
    shutil.copytree(folder.path / "evaluation-000003", folder.path / "partial-0123")
    assert folder.newest(digest).folder.name == "evaluation-000003"
    folder.remove_unfinished()
    assert names(folder) == ["evaluation-000002", "evaluation-000003"]


def test_the_tenth_evaluation_is_newer_than_the_ninth_and_the_hundredth_than_the_99th(tmp_path):
    folder = TrialFolder(tmp_path, "0123456789ab")
    for evaluation in (8, 9, 10, 11, 99, 100, 101):
        saved = folder.save(evaluation, checkpoint().save)
        again = TrialFolder(tmp_path, "0123456789ab")  # as another process finds it
        assert again.newest("fedcba").folder == saved
    folder.keep_newest()
    assert [folder.path / name for name in names(folder)] == [saved]


def test_a_checkpoint_is_on_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    """A power cut must not leave a complete name over files that are empty: each was flushed as it is."""
    flushed, placed = {}, []
    flush, rename = os.fsync, os.rename

    def note_flush(descriptor):
        flush(descriptor)
        status = os.fstat(descriptor)
        flushed[status.st_ino] = (status.st_size, status.st_mtime_ns)

    def note_rename(partial, complete):
        whole = [Path(partial), *Path(partial).iterdir()]
        found = {path.stat().st_ino: (path.stat().st_size, path.stat().st_mtime_ns) for path in whole}
        placed.append((len(found), found.items() <= flushed.items()))
        rename(partial, complete)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(os, "rename", note_rename)
    folder = TrialFolder(tmp_path, "0123456789ab").save(1, checkpoint().save)
    assert {path.name for path in folder.iterdir()} == FILES
    assert placed == [(1 + len(FILES), True)]

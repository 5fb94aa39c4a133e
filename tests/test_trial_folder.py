"""A trial's folder: whatever happens to it, the newest good checkpoint is found, or none."""

import shutil

import pytest

from tests.helpers import CPU, learnt, tiny_config, train, trained
from trainables.trial import Trial
from trainables.trial_folder import TrialFolder


@pytest.fixture(scope="module")
def saved(assets, tmp_path_factory):
    """The folder of a trial after each of three epochs, and the trial that was never interrupted."""
    config = tiny_config(epochs=3)
    folder = TrialFolder(tmp_path_factory.mktemp("storage"), config.trial_hash)
    trial = Trial(config, assets["bert-tiny"], CPU)
    while not trial.is_finished:
        folder.save(trial.run_epoch()["epoch"], trial.save)
    return folder, trial


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of its own for every test."""
    original = saved[0]
    shutil.copytree(original.path, tmp_path / original.trial_hash)
    return TrialFolder(tmp_path, original.trial_hash)


def digest(assets):
    return assets["bert-tiny"].digest


def names(folder):
    return sorted(path.name for path in folder.path.iterdir())


def test_the_newest_and_the_one_before_it_are_kept(folder):
    assert names(folder) == ["epoch-000002", "epoch-000003"]


def test_there_are_never_more_than_two_even_while_one_is_written(folder):
    seen = []
    folder.save(4, lambda partial: seen.append(names(folder)))
    assert len(seen[0]) == 2
    assert names(folder) == ["epoch-000003", "epoch-000004"]


def test_the_newest_is_found(folder, assets):
    found = folder.newest(digest(assets))
    assert found.folder.name == "epoch-000003"
    assert not found.damaged


def test_nothing_is_found_where_nothing_was_saved(tmp_path, assets):
    assert TrialFolder(tmp_path, "0123456789ab").newest(digest(assets)).folder is None


def test_a_damaged_one_is_named_and_the_one_before_it_found(folder, assets):
    weights = folder.path / "epoch-000003" / "last_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    found = folder.newest(digest(assets))
    assert found.folder.name == "epoch-000002"
    assert [str(weights) in line for line in found.damaged] == [True]


def test_going_on_from_the_one_before_gives_the_same_bits(folder, assets, saved):
    (folder.path / "epoch-000003" / "manifest.json").unlink()
    trial = Trial(saved[1].config, assets["bert-tiny"], CPU)
    trial.restore(folder.newest(digest(assets)).folder)
    assert trial.epoch == 2
    assert learnt(train(trial)) == learnt(saved[1])


def test_other_weights_or_tokens_are_not_gone_on_from(folder):
    found = folder.newest("another digest")
    assert found.folder is None
    assert len(found.damaged) == 2


def test_a_write_that_fails_leaves_what_was_there(folder, assets):
    def full_disk(partial):
        (partial / "last_weights.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        folder.save(4, full_disk)
    assert names(folder) == ["epoch-000003"]
    assert folder.newest(digest(assets)).folder.name == "epoch-000003"


def test_a_write_that_fails_leaves_the_one_that_was_gone_on_from_not_a_damaged_one(folder, assets):
    (folder.path / "epoch-000003" / "progress.json").write_text("{}")
    assert folder.newest(digest(assets)).folder.name == "epoch-000002"
    with pytest.raises(KeyboardInterrupt):
        folder.save(3, interrupted)
    assert TrialFolder(folder.path.parent, folder.trial_hash).newest(digest(assets)).folder.name == (
        "epoch-000002"
    )


def interrupted(partial):
    raise KeyboardInterrupt


def test_what_a_killed_worker_left_is_not_taken_for_a_checkpoint(folder, assets):
    (folder.path / "partial-0123").mkdir()
    (folder.path / "partial-0123" / "last_weights.safetensors").write_bytes(b"half")
    assert folder.newest(digest(assets)).folder.name == "epoch-000003"
    folder.remove_unfinished()
    assert names(folder) == ["epoch-000002", "epoch-000003"]


def test_an_epoch_that_was_damaged_is_replaced_when_it_is_trained_again(folder, assets):
    (folder.path / "epoch-000003" / "progress.json").write_text("{}")
    trial = trained(tiny_config(epochs=3), assets["bert-tiny"])
    folder.save(3, trial.save)
    assert folder.newest(digest(assets)).folder.name == "epoch-000003"

"""The journal: what was entered is read back, whatever a crash did to the last line."""

import pytest
from sweep.journal import Journal

TRIAL = "0123456789ab"


def report(epoch, **more):
    curve = [[epoch, 0.5, 1 / 3, 1e-3]]
    return {"epoch": epoch, "val_acc": 0.1 * epoch, "val_loss": 1 / epoch, "step_curve": curve} | more


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal")


def file(journal):
    return journal.folder / f"{TRIAL}.jsonl"


def test_entries_come_back_exactly_and_stamped(journal):
    entered = journal.add(TRIAL, [report(1), report(2)])
    assert journal.epochs(TRIAL) == entered
    assert [{k: v for k, v in r.items() if k != "timestamp"} for r in entered] == [report(1), report(2)]
    assert all(r["timestamp"] > 1_700_000_000_000 for r in entered)


def test_an_epoch_is_entered_once_and_keeps_its_stamp(journal):
    first = journal.add(TRIAL, [report(1)])
    again = Journal(journal.folder).add(TRIAL, [report(1), report(1, epoch_seconds=9.0), report(2)])
    assert again[:2] == [first[0], first[0]]
    assert [r["epoch"] for r in journal.epochs(TRIAL)] == [1, 2]


def test_an_epoch_trained_again_to_another_loss_takes_the_place_of_the_first(journal):
    journal.add(TRIAL, [report(1), report(2)])
    (again,) = journal.add(TRIAL, [report(1, val_loss=0.9)])
    assert again["val_loss"] == 0.9
    assert [r["val_loss"] for r in journal.epochs(TRIAL)] == [0.9, 0.5]


def test_an_epoch_twice_in_one_call_is_entered_once(journal):
    journal.add(TRIAL, [report(1), report(1)])
    assert len(journal.epochs(TRIAL)) == 1


def test_every_length_of_a_torn_file_gives_whole_entries_and_can_be_added_to(journal):
    journal.add(TRIAL, [report(1)])
    journal.add(TRIAL, [report(2)])
    whole = file(journal).read_bytes()
    entered = journal.epochs(TRIAL)
    for length in range(len(whole)):
        file(journal).write_bytes(whole[:length])
        left = journal.epochs(TRIAL)
        assert left == entered[: len(left)]
        journal.add(TRIAL, [report(3)])
        assert [r["epoch"] for r in journal.epochs(TRIAL)] == [r["epoch"] for r in left] + [3]


def test_a_changed_byte_costs_its_line_and_is_never_read_as_something_else(journal):
    journal.add(TRIAL, [report(1), report(2)])
    whole = file(journal).read_bytes()
    entered = journal.epochs(TRIAL)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        file(journal).write_bytes(damaged)
        assert all(r in entered for r in journal.epochs(TRIAL))


def test_trials_do_not_mix_and_are_forgotten_alone(journal):
    journal.add(TRIAL, [report(1)])
    journal.add("ba9876543210", [report(2)])
    journal.forget(TRIAL)
    journal.forget(TRIAL)
    assert journal.epochs(TRIAL) == []
    assert [r["epoch"] for r in journal.epochs("ba9876543210")] == [2]

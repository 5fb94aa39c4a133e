"""A short selection of the campaign's faults of single trials, without the command around them."""

import random

from tests.faults import in_process


def test_no_byte_range_of_a_checkpoint_can_change_unnoticed(assets, tmp_path):
    results = list(in_process.every_byte_range(assets["bert-tiny"], tmp_path, ranges=12))
    assert len(results) > 50
    assert not [what for what, problem in results if problem]


def test_a_trial_whose_newest_checkpoint_is_damaged_ends_where_it_would_have(assets, tmp_path):
    for what, problem in in_process.damaged_checkpoints(assets["bert-tiny"], tmp_path, 8, random.Random(1)):
        assert not problem, what


def test_a_trial_that_runs_out_of_memory_ends_as_if_told_to_halve_there(assets):
    for what, problem in in_process.exhausted_memory(assets["bert-tiny"], 4, random.Random(1)):
        assert not problem, what

"""A short selection of the campaign's faults of single trials, without the command around them."""

import random

from tests.faults import in_process
from tests.faults.rounds import ended
from tests.faults.study import Command


def test_no_byte_range_of_a_checkpoint_can_change_unnoticed(assets, tmp_path):
    results = list(in_process.every_byte_range(assets["bert-tiny"], tmp_path, ranges=6))
    assert len(results) > 25
    assert not [what for what, problem in results if problem]


def test_a_trial_whose_newest_checkpoint_is_damaged_ends_where_it_would_have(assets, tmp_path):
    for what, problem in in_process.damaged_checkpoints(assets["bert-tiny"], tmp_path, 4, random.Random(1)):
        assert not problem, what


def test_a_trial_that_runs_out_of_memory_ends_as_if_told_to_halve_there(assets):
    for what, problem in in_process.exhausted_memory(assets["bert-tiny"], 2, random.Random(1)):
        assert not problem, what


def test_a_run_that_fails_is_reported_with_the_last_that_it_said(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("import sys\nfor n in range(40): print('line', n)\nsys.exit('error: no room')")
    (problem,) = ended(Command(tmp_path, study=[], script=script).start())
    assert problem.startswith("exit code 1 ")
    assert problem.endswith("line 39\nerror: no room")
    assert "line 5\n" not in problem

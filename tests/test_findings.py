"""What a report says of a study with several seeds, and of one that has hardly begun."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.null_studies import Truth, simulated_study
from reports.charts import accuracy_pictures, curve_pictures, noise_pictures
from reports.findings import find
from reports.study_data import StudyData


def with_metrics(study):
    """The metrics that a tested trial has beside its predictions."""
    trials = {
        name: replace(
            trial,
            metrics={
                **trial.metrics,
                "test_acc": float(trial.correct().mean()),
                "last_test_acc": float(trial.correct("last").mean()),
            },
        )
        for name, trial in study.trials.items()
    }
    sizes = {"train": 1000, "val": 300, "test": 300}
    plan = {**study.plan, "dataset": {"sizes": sizes}}
    return replace(study, plan=plan, trials=trials)


@pytest.fixture(scope="module")
def seeded():
    truth = Truth(seeds=3, effects={1024: -1.5}, training_deviation=0.1)
    return with_metrics(simulated_study(truth, np.random.default_rng(0)))


def test_seed_and_test_variation_are_reported_apart(seeded):
    table = find(seeded).tables["seed_spread"]
    assert len(table.rows) == 6
    for model, batch, rule, seeds, mean, deviation, error in table.rows:
        accuracies = [
            trial.correct().mean()
            for cell in seeded.cells
            if (cell.model, cell.target_batch_size, cell.scaling_rule) == (model, batch, rule)
            for trial in [seeded.trial(cell)]
        ]
        assert seeds == 3
        assert float(mean) == pytest.approx(np.mean(accuracies), abs=5e-5)
        assert float(deviation) == pytest.approx(100 * np.std(accuracies, ddof=1), abs=0.05)
        p = np.mean(accuracies)
        assert float(error) == pytest.approx(100 * (p * (1 - p) / 300) ** 0.5, abs=0.05)


def test_comparisons_show_an_interval_over_seeds_only_where_there_are_seeds(seeded):
    assert "95 % interval over seeds" in find(seeded).tables["comparisons"].columns
    single = with_metrics(simulated_study(Truth(), np.random.default_rng(0)))
    found = find(single)
    assert "95 % interval over seeds" not in found.tables["comparisons"].columns
    assert "seed_spread" not in found.tables


def test_a_large_loss_under_every_seed_is_the_headline(seeded):
    assert "target batch size 1024 is worse than 64 by" in find(seeded).headline[0]


def test_seeds_have_a_column_and_a_picture(seeded):
    found = find(seeded)
    assert all("seed" in table.columns for table in found.results)
    pictures = list(accuracy_pictures(seeded))
    assert [picture.name for picture in pictures] == ["tiny_test_acc", "tiny_val_acc_at_best_epoch"]
    assert "each seed as a dot" in pictures[0].caption


def test_a_study_that_has_not_begun_has_a_report_and_no_pictures(seeded):
    empty = StudyData(seeded.plan, seeded.cells, {})
    found = find(empty)
    assert found.headline[0].startswith("No comparison can be made")
    assert len(found.rows) == len(seeded.cells)
    for pictures in (accuracy_pictures, curve_pictures, noise_pictures):
        assert list(pictures(empty)) == []

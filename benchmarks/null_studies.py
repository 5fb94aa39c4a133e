"""Does the pipeline keep its promises? Simulated studies whose truth is known go in, verdicts come out.

A test example has a difficulty that every trial shares, so that trials are right and wrong together, as
real ones are; given it, trials answer independently, so that any two of them are exchangeable and every
claim of a difference is false. ``python -m benchmarks.null_studies --studies 1000`` prints how often a
study makes any false claim, and how often the intervals cover the truth.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy.special import expit

from reports.statistics import difference, pooled_seed_variance, wilson_interval
from reports.study_data import StoredCell, StoredPlan, StudyData, TrialData
from reports.verdicts import ALPHA, BETTER, WORSE, Family, compare_cells
from search_spaces import TrialConfig
from tracking import DatasetFacts

BATCHES = (64, 256, 1024)
_ABILITY = 1.5  # log-odds of a correct answer at mean difficulty: an accuracy of about 0.77
_DIFFICULTY = 1.5  # standard deviation, log-odds
_WORSE = {1024: -1.0}
_NO_STEPS = pd.DataFrame()


@dataclass(frozen=True)
class Truth:
    """What a simulated study is drawn from.

    ``training_deviation`` is how much trainings of one cell differ in ability, in log-odds;
    ``effects`` adds to the ability of a target batch size, and makes the study non-null.
    """

    examples: int = 300
    seeds: int = 1
    scaling_rules: tuple[str, ...] = ("fixed", "linear")
    training_deviation: float = 0.0
    effects: Mapping[int, float] = field(default_factory=dict)


def simulated_study(truth: Truth, generator: np.random.Generator) -> StudyData:
    """One model, three target batch sizes; with two rules 5 trials a seed and 6 comparisons."""
    difficulty = generator.normal(0, _DIFFICULTY, truth.examples)
    cells = [
        TrialConfig(model="tiny", target_batch_size=batch, scaling_rule=rule, seed=seed)
        for rule in truth.scaling_rules
        for batch in BATCHES
        for seed in range(truth.seeds)
    ]
    trials = {}
    for trial_hash, cell in ((cell.trial_hash, cell) for cell in cells):
        if trial_hash not in trials:
            ability = _ABILITY + truth.effects.get(cell.target_batch_size, 0.0)
            ability += generator.normal(0, truth.training_deviation)
            correct = generator.random(truth.examples) < expit(ability - difficulty)
            trials[trial_hash] = simulated_trial(cell, correct)
    baselines = {"target_batch_size": BATCHES[0], "scaling_rule": truth.scaling_rules[0]}
    return StudyData(simulated_plan(cells, baselines), trials)


def simulated_plan(
    cells: Iterable[TrialConfig], baselines: dict[str, Any], train_examples: int = 1000
) -> StoredPlan:
    """The plan of a study with these cells; its validation and test splits have 300 examples."""
    sizes = {"train": train_examples, "val": 300, "test": 300}
    return StoredPlan(
        study="simulated",
        question="Is there a difference?",
        dataset=DatasetFacts("simulated", "nowhere", "", sizes, ("wrong", "right"), 0),
        cells=[StoredCell(trial_hash=cell.trial_hash, config=cell) for cell in cells],
        baselines=baselines,
    )


def simulated_trial(
    config: TrialConfig, correct: np.ndarray, last_correct: np.ndarray | None = None
) -> TrialData:
    """A tested trial with these answers at its best epoch (3) and its last (5)."""
    last = correct if last_correct is None else last_correct
    accuracies = {"best_val_acc": correct.mean(), "test_acc": correct.mean(), "last_test_acc": last.mean()}
    return TrialData(
        run_id=f"run of {config.trial_hash}",
        name=f"{config.model_name} · {config.target_batch_size} · {config.scaling_rule}",
        config=config,
        scaling_rules=(config.scaling_rule,),
        metrics={"best_epoch": 3.0, **{name: float(value) for name, value in accuracies.items()}},
        epochs=_NO_STEPS,
        steps=_NO_STEPS,
        predictions={"best": predictions(correct), "last": predictions(last)},
    )


def predictions(correct: np.ndarray) -> pd.DataFrame:
    """Predictions, (examples,), of which these are correct; every label is 1."""
    rows = np.arange(len(correct))
    return pd.DataFrame({"row_id": rows, "label": 1, "prediction": correct.astype(int), "probability": 0.9})


def claims(family: Family) -> bool:
    """Whether any difference is claimed."""
    return bool(family.verdicts["outcome"].isin([BETTER, WORSE]).any())


def claims_without_holm(family: Family) -> bool:
    """Wrong on purpose: every comparison at the level of one."""
    return bool((family.verdicts["p"] <= ALPHA).any())


def studies_that_claim(truth: Truth, studies: int, *rules: Callable[[Family], bool]) -> list[int]:
    """Of ``studies`` simulated studies, how many claim something, under each rule of claiming."""
    counts = np.zeros(len(rules), dtype=int)
    for number in range(studies):
        family = compare_cells(simulated_study(truth, np.random.default_rng(number)))
        counts += [rule(family) for rule in rules]
    return [int(count) for count in counts]


def covered(truth: Truth, draws: int) -> tuple[int, int]:
    """How many Wilson intervals and intervals of a difference cover the truth, of ``draws`` each.

    One trial's accuracy, and the difference of a trial that is 0.5 log-odds abler, on fresh examples.
    """
    generator = np.random.default_rng(0)
    accuracy, abler = (_accuracy(_ABILITY + effect) for effect in (0.0, 0.5))
    wilson = paired = 0
    for _ in range(draws):
        difficulty = generator.normal(0, _DIFFICULTY, truth.examples)
        chances = generator.random((2, truth.seeds, truth.examples))
        baseline = chances[0] < expit(_ABILITY - difficulty)
        correct = chances[1] < expit(_ABILITY + 0.5 - difficulty)
        low, high = wilson_interval(int(baseline[0].sum()), truth.examples)
        wilson += low <= accuracy <= high
        pooled = pooled_seed_variance([correct, baseline])
        low, high = difference(correct, baseline, pooled).interval(ALPHA)
        paired += low <= abler - accuracy <= high
    return wilson, paired


def _accuracy(ability: float) -> float:
    """The accuracy over all difficulties, by Gauss-Hermite quadrature."""
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(60)
    return float(expit(ability - _DIFFICULTY * nodes) @ node_weights / node_weights.sum())


def _table(studies: int) -> Table:
    one, three = Truth(), Truth(seeds=3)
    false, no_holm = studies_that_claim(one, studies, claims, claims_without_holm)
    rows: list[tuple[str, str, int]] = [
        ("any false claim", "1 seed", false),
        ("… without Holm", "1 seed", no_holm),
        ("… if it were about trainings", "1 seed, trainings vary", _claiming(_varying(1), studies)),
        ("any false claim", "3 seeds", _claiming(three, studies)),
        *(
            ("any false claim", f"{seeds} seeds, trainings vary", _claiming(_varying(seeds), studies))
            for seeds in (3, 5, 10, 20)
        ),
        ("any true claim", "1 seed, 1024 is worse", _claiming(Truth(effects=_WORSE), studies)),
        *(
            (
                "any true claim",
                f"{seeds} seeds, trainings vary, 1024 is worse",
                _claiming(_varying(seeds, _WORSE), studies),
            )
            for seeds in (3, 5)
        ),
    ]
    for name, truth in (("1 seed", one), ("3 seeds", three)):
        wilson, paired = covered(truth, studies)
        rows += [("Wilson interval covers", name, wilson), ("difference's interval covers", name, paired)]
    table = Table("what", "truth", "rate", "95 % interval", title=f"{studies} studies a row")
    for what, truth_name, count in rows:
        low, high = wilson_interval(count, studies)
        table.add_row(what, truth_name, f"{count / studies:.3f}", f"{low:.3f} to {high:.3f}")
    return table


def _varying(seeds: int, effects: Mapping[int, float] | None = None) -> Truth:
    return Truth(seeds=seeds, training_deviation=0.4, effects=effects or {})


def _claiming(truth: Truth, studies: int) -> int:
    return studies_that_claim(truth, studies, claims)[0]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000, help="simulated studies per row (1000)")
    Console().print(_table(parser.parse_args().studies))


if __name__ == "__main__":
    main()

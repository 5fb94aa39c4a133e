"""Does the pipeline keep its promises? Simulated studies whose truth is known go in, verdicts come out.

A test example has a difficulty that every trial shares, so that trials are right and wrong together, as
real ones are. A training has an ability; the accuracy is the share of examples that are not too difficult
for it. ``python -m benchmarks.null_studies`` simulates 1,000 studies of every truth in TRUTHS, and prints
how often their verdicts are false and how often they find what is there.
"""

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy.optimize import brentq
from scipy.special import expit

from reports.statistics import accuracy_interval, difference, pooled_seed_variance, wilson_interval
from reports.study_data import StudyData, TrialData
from reports.verdicts import ALPHA, BETTER, EQUIVALENT, WORSE, ComparisonFamily, Verdict, compare_cells
from search_spaces import Space, TrialConfig
from search_spaces.plan import Cell, DatasetFacts, Plan

BATCHES = (64, 256, 1024)
_NO_STEPS = pd.DataFrame()


@dataclass(frozen=True)
class Truth:
    """What a simulated study is drawn from: one model, three target batch sizes. Points of accuracy.

    ``effects`` adds to the accuracy of a target batch size. ``difficulty`` is the standard deviation of the
    examples' difficulty in log-odds: the larger, the less two trainings disagree. ``deviation`` is the
    standard deviation over trainings of a cell's accuracy on the test examples, as a study shows it, times
    ``restless`` at some target batch sizes. ``interaction`` is how much each cell finds some examples
    easier than others do, a standard deviation in log-odds. ``diverging`` is the chance that a training
    at a target batch size diverges. ``control_seeds`` are those of the cells at the smallest one.
    """

    examples: int = 300
    seeds: int = 1
    control_seeds: int = 0
    scaling_rules: tuple[str, ...] = ("fixed", "linear")
    accuracy: float = 77.0
    difficulty: float = 1.5
    deviation: float = 0.0
    effects: Mapping[int, float] = field(default_factory=dict)
    restless: Mapping[int, float] = field(default_factory=dict)
    interaction: float = 0.0
    diverging: Mapping[int, float] = field(default_factory=dict)

    def difference(self, verdict: Verdict) -> float:
        """The true difference that a verdict is about, points."""
        if verdict.axis != "target_batch_size":
            return 0.0
        return self.effects.get(verdict.value, 0.0) - self.effects.get(verdict.baseline, 0.0)

    @property
    def scatter(self) -> float:
        """Of the difficulty of an example for one cell, log-odds."""
        return math.hypot(self.difficulty, self.interaction)

    def ability(self, batch: int, spread: float) -> float:
        """Of a training whose accuracy is ``spread`` standard deviations off its cell's, log-odds."""
        accuracy = self.accuracy + self.effects.get(batch, 0.0)
        deviation = self.deviation * self.restless.get(batch, 1.0)
        # equal abilities answer differently too, and the accuracies of that scatter already
        of_answers = 100**2 * _disagreement(accuracy, self.scatter) / 2 / self.examples
        of_ability = math.sqrt(max(0.0, deviation**2 - of_answers))
        return _ability(accuracy, self.scatter) + spread * of_ability / _slope(accuracy, self.scatter)


_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(200)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def _accuracy(ability: float, scatter: float) -> float:
    """The accuracy over all difficulties in points, by Gauss-Hermite quadrature."""
    return float(100 * expit(ability - scatter * _NODES) @ _WEIGHTS)


@cache
def _ability(accuracy: float, scatter: float) -> float:
    """The ability with this accuracy in points, log-odds."""
    return float(brentq(lambda ability: _accuracy(ability, scatter) - accuracy, -50, 50))


@cache
def _slope(accuracy: float, scatter: float) -> float:
    """Points of accuracy for a little more ability."""
    ability, little = _ability(accuracy, scatter), 1e-3
    return (_accuracy(ability + little, scatter) - accuracy) / little


@cache
def _disagreement(accuracy: float, scatter: float) -> float:
    """The share of examples on which two trainings of one ability disagree."""
    right = expit(_ability(accuracy, scatter) - scatter * _NODES)
    return float(2 * (right * (1 - right)) @ _WEIGHTS)


def simulated_study(truth: Truth, generator: np.random.Generator) -> StudyData:
    """With two rules and one seed: 5 trials, 6 comparisons."""
    difficulty = generator.normal(0, truth.difficulty, truth.examples)
    cells = [
        TrialConfig(model="tiny", target_batch_size=batch, scaling_rule=rule, seed=seed)
        for rule in truth.scaling_rules
        for batch in BATCHES
        for seed in range(max(truth.seeds, truth.control_seeds if batch == BATCHES[0] else 0))
    ]
    own: dict[float, np.ndarray] = {}  # learning rate and batch size name what a cell learns
    trials: dict[str, TrialData] = {}
    for trial_hash, cell in ((cell.trial_hash, cell) for cell in cells):
        if trial_hash in trials:
            continue
        batch = cell.target_batch_size
        key = batch + cell.learning_rate
        if key not in own:
            own[key] = generator.normal(0, truth.interaction, truth.examples)
        ability = truth.ability(batch, generator.normal())
        correct = generator.random(truth.examples) < expit(ability + own[key] - difficulty)
        trials[trial_hash] = simulated_trial(cell, correct)
        if generator.random() < truth.diverging.get(batch, 0.0):
            tags = {"outcome": "diverged"}
            trials[trial_hash] = replace(trials[trial_hash], metrics={}, predictions={}, tags=tags)
    baselines = {"target_batch_size": BATCHES[0], "scaling_rule": truth.scaling_rules[0]}
    return StudyData(simulated_plan(cells, baselines), trials)


def simulated_plan(
    cells: Iterable[TrialConfig], baselines: dict[str, Any], train_examples: int = 1000
) -> Plan:
    """The plan of a study with these cells; its validation and test splits have 300 examples."""
    sizes = {"train": train_examples, "val": 300, "test": 300}
    cells = list(cells)
    space = Space(
        name="simulated",
        question="Is there a difference?",
        models=_values(cells, "model"),
        target_batch_sizes=_values(cells, "target_batch_size"),
        scaling_rules=_values(cells, "scaling_rule"),
        seeds=_values(cells, "seed"),
        baselines=baselines,
    )
    return Plan(
        study="simulated",
        space=space,
        shared=cells[0],
        dataset=DatasetFacts("simulated", "nowhere", "", sizes, ("wrong", "right"), 0),
        model_digests={},
        metrics={"loss": "cross entropy (nats)", "acc": "accuracy"},
        cells=tuple(Cell(config=cell) for cell in cells),
    )


def _values(cells: Iterable[TrialConfig], axis: str) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(getattr(cell, axis) for cell in cells))


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
        metrics={
            "best_epoch": 3.0,
            "best_evaluation": 3.0,
            **{name: float(value) for name, value in accuracies.items()},
        },
        evaluations=_NO_STEPS,
        steps=_NO_STEPS,
        predictions={"best": predictions(correct), "last": predictions(last)},
    )


def predictions(correct: np.ndarray) -> pd.DataFrame:
    """Predictions, (examples,), of which these are correct; every label is 1."""
    rows = np.arange(len(correct))
    return pd.DataFrame({"row_id": rows, "label": 1, "prediction": correct.astype(int), "probability": 0.9})


@dataclass(frozen=True)
class Count:
    """How often something happened, of how often it could have."""

    hits: int = 0
    chances: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.hits + other.hits, self.chances + other.chances)

    def __str__(self) -> str:
        if not self.chances:
            return "–"
        low, high = wilson_interval(self.hits, self.chances)
        return f"{self.hits / self.chances:.3f} ({low:.3f}–{high:.3f})"


def _any(hits: Iterable[bool]) -> Count:
    return Count(int(any(hits)), 1)


def _each(hits: Sequence[bool]) -> Count:
    return Count(sum(hits), len(hits))


def judged(truth: Truth, family: ComparisonFamily) -> dict[str, Count]:
    """What is true and false of a study's verdicts.

    Of the study: a claim of a difference that is none or is the other way round (``false claim``); a claim
    the other way round alone; whether all its simultaneous intervals hold; an equivalence claimed where the
    difference is as large as the margin. Of each comparison: a difference that is there and found; an
    equivalence that is there and found; an interval of this comparison alone that holds.
    """
    verdicts = [(verdict, truth.difference(verdict)) for verdict in family.verdicts]
    signs = {BETTER: 1, WORSE: -1}
    wrong = [signs[v.outcome] * true <= 0 for v, true in verdicts if v.outcome in signs]
    turned = [signs[v.outcome] * true < 0 for v, true in verdicts if v.outcome in signs]
    holds = [
        v.difference_points_low <= true <= v.difference_points_high
        for v, true in verdicts
        if v.difference_points == v.difference_points
    ]
    equivalent = [(v.outcome == EQUIVALENT, abs(true) < family.margin) for v, true in verdicts]
    return {
        "false claim": _any(wrong),
        "wrong direction": _any(turned),
        "difference found": _each([signs.get(v.outcome, 0) * true > 0 for v, true in verdicts if true]),
        "all intervals hold": Count(int(all(holds)), 1),
        "false equivalence": _any(claimed and not near for claimed, near in equivalent),
        "equivalence found": _each([claimed for claimed, near in equivalent if near]),
    }


def without_holm(truth: Truth, family: ComparisonFamily) -> dict[str, Count]:
    """Wrong on purpose: every comparison at the level of one."""
    return {"false claim": _any(verdict.p <= ALPHA for verdict in family.verdicts)}


def simulate(truth: Truth, studies: int, judge: Any = judged) -> dict[str, Count]:
    """The counts over ``studies`` simulated studies."""
    total: dict[str, Count] = {}
    for number in range(studies):
        family = compare_cells(simulated_study(truth, np.random.default_rng(number)))
        for name, count in judge(truth, family).items():
            total[name] = total.get(name, Count()) + count
    return total


def covered(truth: Truth, draws: int, effect: float = 6.0) -> tuple[Count, Count]:
    """95 % intervals that cover the truth: of a cell's accuracy, and of the difference of two cells.

    One is ``effect`` points better than the other; examples and trainings are fresh each time.
    """
    generator = np.random.default_rng(0)
    better = replace(truth, effects={BATCHES[0]: effect})
    alone = paired = 0
    for _ in range(draws):
        difficulty = generator.normal(0, truth.difficulty, truth.examples)
        correct, baseline = (_answers(each, difficulty, generator) for each in (better, truth))
        low, high = accuracy_interval(baseline)
        alone += 100 * low <= truth.accuracy <= 100 * high
        pooled = pooled_seed_variance([correct, baseline])
        low, high = difference(correct, baseline, pooled).interval(ALPHA)
        paired += 100 * low <= effect <= 100 * high
    return Count(alone, draws), Count(paired, draws)


def _answers(truth: Truth, difficulty: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Of the trainings of one cell: bool, (seeds, examples)."""
    abilities = [truth.ability(BATCHES[0], generator.normal()) for _ in range(truth.seeds)]
    chances = expit(np.subtract.outer(abilities, difficulty))
    return generator.random(chances.shape) < chances


def _seeds(*seeds: int, **fields: Any) -> dict[str, Truth]:
    return {f"{n} seeds": Truth(seeds=n, **fields) for n in seeds}


_VARYING: dict[str, Any] = {"deviation": 4.5}
# two trainings disagree on 5.6 % of the examples, as those of encoders of this accuracy do
_GOOD: dict[str, Any] = {"accuracy": 92.0, "difficulty": 5.0}
_LARGE: dict[str, Any] = {"examples": 2000, "deviation": 0.5, **_GOOD}
_HUGE: dict[str, Any] = {"examples": 20_000, "deviation": 0.2, **_GOOD}

TRUTHS: dict[str, dict[str, Truth]] = {
    "no difference, trainings alike": {"1 seed": Truth()} | _seeds(3),
    "no difference, trainings vary by 4.5 points": _seeds(3, 5, 10, 20, **_VARYING),
    "no difference, cells find other examples easy": _seeds(3, 5, 10, 20, interaction=1.0, deviation=3.0),
    "no difference, 1024 varies three times as much": _seeds(3, 5, 10, restless={1024: 3.0}, **_LARGE),
    "no difference, 1024 varies six times as much": _seeds(3, 5, 10, restless={1024: 6.0}, **_LARGE),
    "no difference, 64 varies three times as much": _seeds(3, 5, restless={64: 3.0}, **_LARGE),
    "no difference, 64 varies six times as much": _seeds(3, 5, restless={64: 6.0}, **_LARGE),
    "no difference, 64 varies six times as much, 6 seeds of the control": _seeds(
        3, restless={64: 6.0}, control_seeds=6, **_LARGE
    ),
    "no difference, 6 seeds of the control": _seeds(3, control_seeds=6, **_VARYING),
    "no difference, 30 % of 1024 diverge": _seeds(3, 5, diverging={1024: 0.3}, **_VARYING),
    "1024 worse by 16 points": {"1 seed": Truth(effects={1024: -16.0})}
    | _seeds(3, 5, effects={1024: -16.0}, **_VARYING),
    "n = 2,000 at 92 %, trainings vary by 0.5, no difference": _seeds(3, 5, **_LARGE),
    "… 1024 worse by 2 points": _seeds(3, 5, effects={1024: -2.0}, **_LARGE),
    "… 1024 worse by 4 points": _seeds(3, effects={1024: -4.0}, **_LARGE),
    "… 1024 worse by 2 points, vary by 0.75, disagree on 12 %": _seeds(
        3, 5, effects={1024: -2.0}, **_LARGE | {"deviation": 0.75, "difficulty": 1.5}
    ),
    "n = 20,000 at 92 %, trainings vary by 0.2, no difference": _seeds(3, 5, **_HUGE),
    "… 256 and 1024 better by the margin, 1 point": _seeds(3, 5, effects={256: 1.0, 1024: 1.0}, **_HUGE),
    "… with one training each": {"1 seed": Truth(effects={256: 1.0}, examples=20_000, **_GOOD)},
}
_COLUMNS = (
    *("false claim", "wrong direction", "difference found", "all intervals hold"),
    *("false equivalence", "equivalence found"),
)


def _verdict_table(studies: int) -> Table:
    truths = [(name, seeds, truth) for name, kind in TRUTHS.items() for seeds, truth in kind.items()]
    table = Table("truth", "seeds", *_COLUMNS, title=f"{studies} studies a row; 95 % intervals in brackets")
    with ProcessPoolExecutor() as pool:
        counts = pool.map(partial(simulate, studies=studies), [truth for *_, truth in truths])
        for (name, seeds, _), row in zip(truths, counts, strict=True):
            table.add_row(name, seeds, *(str(row[column]) for column in _COLUMNS))
    wrong = simulate(Truth(), studies, without_holm)
    about_trainings = simulate(Truth(**_VARYING), studies)
    table.add_row("wrong on purpose: without Holm", "1 seed", str(wrong["false claim"]))
    table.add_row("read as if about trainings", "1 seed", str(about_trainings["false claim"]))
    return table


def _interval_table(draws: int) -> Table:
    table = Table("truth", "seeds", "accuracy", "difference", title=f"{draws} intervals at 95 % a row")
    for seeds in (1, 3, 5, 10):
        for name, fields in {"n = 300 at 77 %": {}, "n = 2,000 at 92 %": _LARGE}.items():
            spread = {} if seeds == 1 else {"deviation": fields.get("deviation", 4.5)}
            truth = Truth(seeds=seeds, **fields | {"deviation": 0.0} | spread)
            table.add_row(name, str(seeds), *map(str, covered(truth, draws, effect=4.0)))
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000, help="simulated studies a row (1000)")
    studies = parser.parse_args().studies
    console = Console(width=200)
    console.print(_verdict_table(studies))
    console.print(_interval_table(5 * studies))


if __name__ == "__main__":
    main()

"""What a study will be able to tell, said before anything is trained. Accuracies are fractions of 1."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import optimize

from reports.comparisons import Comparison, cells_of, planned_comparisons
from reports.prose import counted, listed, span
from reports.statistics import (
    Difference,
    SeedsDifference,
    TrainingsDifference,
    difference_over_seeds,
)
from reports.study_data import StudyData
from reports.verdicts import ALPHA
from search_spaces import TrialConfig
from search_spaces.plan import Forecast, Plan
from search_spaces.space import MOST_SEEDS

MANY = 10**6  # seeds: more than anybody trains


class Known(NamedTuple):
    """A number, and where it comes from."""

    value: float
    source: str


@dataclass(frozen=True)
class Chance:
    """How much accuracies vary by chance alone, as far as it is known.

    ``seed_deviation``: the standard deviation of a cell's test accuracy over seeds. ``disagreement``: the
    share of test examples that only one of two compared trainings classifies correctly.
    """

    seed_deviation: Known | None = None
    disagreement: Known | None = None

    def or_else(self, other: "Chance") -> "Chance":
        """These values; for an unknown one that of ``other``."""
        return Chance(self.seed_deviation or other.seed_deviation, self.disagreement or other.disagreement)


@dataclass(frozen=True)
class Durations:
    """Trial hash -> seconds of training and validation, for trials whose duration is known."""

    seconds: Mapping[str, float]
    source: str


class Expected(NamedTuple):
    """The expected durations of a model's trials; empty if none of them is known."""

    seconds: Mapping[str, float]  # trial hash -> training and validation
    estimated: str = ""  # the target batch sizes that are estimated, and from what


class Seeds(NamedTuple):
    """How many seeds every cell needs for a margin, or MANY; None: no number is enough."""

    to_find: int | None  # a difference as large as the margin, with a probability of 80 %
    to_equate: int | None  # two cells that do not differ, with the same probability


def assumed(seed_points: float | None, disagreement: float | None) -> Chance:
    """What the user assumes; the deviation over seeds is given in points."""
    deviation = None if seed_points is None else seed_points / 100
    return Chance(
        *(None if value is None else Known(value, "assumed") for value in (deviation, disagreement))
    )


def forecast(plan: Plan, chance: Chance, durations: Durations) -> Forecast:
    """What is expected before training, shown in the report beside the results."""
    if not plan.cells:
        return Forecast()
    found = Forecast()
    comparisons = _comparisons(plan)
    if comparisons and not _missing(chance, any(_freedoms(plan, comparisons).values())):
        low, high = smallest_differences(plan, chance)
        if not math.isnan(high):
            found.smallest_points = (100 * low, 100 * high)
    by_model = expected_durations(plan, durations).values()
    if all(each.seconds for each in by_model):
        found.minutes = sum(sum(each.seconds.values()) for each in by_model) / 60
    return found


def power_lines(plan: Plan, chance: Chance) -> list[str]:
    """What a plan's comparisons will find; no lines for a search, whose trials are not compared."""
    if not plan.cells:
        return []
    trials = plan.configs
    evaluations = sum(config.evaluation_count for config in trials.values())
    comparisons = _comparisons(plan)
    extent = f"{counted(len(trials), 'trial')}, {counted(evaluations, 'evaluation')}"
    lines = [f"{extent}, {counted(len(comparisons), 'planned comparison')}"]
    if not comparisons:
        return lines
    several = any(_freedoms(plan, comparisons).values())
    return [*lines, _smallest_line(plan, chance, several), _seeds_line(plan, chance)]


def _smallest_line(plan: Plan, chance: Chance, several_seeds: bool) -> str:
    start = "smallest difference that it will find with a probability of 80 %:"
    if missing := _missing(chance, several_seeds):
        return f"{start} {missing}"
    low, high = (100 * end for end in smallest_differences(plan, chance))
    found = "none, however large" if math.isnan(high) else f"{span(low, high)} points"
    return f"{start} {found}, {_basis(chance, several_seeds)}"


def _seeds_line(plan: Plan, chance: Chance) -> str:
    start = f"seeds of every cell for the margin of {plan.margin:g} point{'s' * (plan.margin != 1)}:"
    if missing := _missing(chance, several_seeds=True):
        return f"{start} {missing}"
    needed = seeds_needed(plan, chance)
    find, equate = (
        "no number" if count is None else f"more than {MOST_SEEDS}" if count == MANY else f"{count}"
        for count in needed
    )
    text = (
        f"{start} {find} to find it, {equate} to call two equal cells equivalent, each with a probability "
        "of 80 %"
    )
    few = f"; {plan.dataset.sizes['test']:,} test examples are too few" if None in needed else ""
    return text + few


def _missing(chance: Chance, several_seeds: bool) -> str:
    options = ["--assume-seed-sd"] if several_seeds and chance.seed_deviation is None else []
    options += ["--assume-disagreement"] if chance.disagreement is None else []
    return f"unknown: give {listed(options)}" if options else ""


def _basis(chance: Chance, several_seeds: bool) -> str:
    parts = []
    if several_seeds and chance.seed_deviation:
        value, source = chance.seed_deviation
        parts.append(f"a standard deviation over seeds of {100 * value:.2g} points ({source})")
    if chance.disagreement:
        value, source = chance.disagreement
        parts.append(f"a disagreement of {100 * value:.2g} % ({source})")
    return f"with {listed(parts)}"


def time_line(plan: Plan, durations: Durations) -> str:
    """How long each model's trials take, and all together."""
    if not plan.cells:
        return "minutes: unknown: a search proposes its trials as it goes"
    expected = expected_durations(plan, durations)
    if not any(each.seconds for each in expected.values()):
        return (
            "minutes: unknown: no earlier trial of these models on this hardware with as small a batch; "
            "give --calibrate"
        )
    parts = [
        f"{name} {_minutes(each.seconds.values()) if each.seconds else 'unknown'}"
        for name, each in expected.items()
    ]
    total = "unknown"
    if all(each.seconds for each in expected.values()):
        total = _minutes([sum(sum(each.seconds.values()) for each in expected.values())])
    estimated = [f"{name} at {each.estimated}" for name, each in expected.items() if each.estimated]
    basis = durations.source + (f"; estimated: {', '.join(estimated)}" if estimated else "")
    return f"minutes a trial: {', '.join(parts)}; all, one after the other: {total} ({basis})"


def expected_durations(plan: Plan, durations: Durations) -> dict[str, Expected]:
    """Model -> durations of its trials: known ones as they are, the others estimated from these."""
    known, train = durations.seconds, plan.dataset.sizes["train"]
    return {name: _expected(configs, known, train) for name, configs in trials_by_model(plan).items()}


def trials_by_model(plan: Plan) -> dict[str, dict[str, TrialConfig]]:
    """Model -> its trials' hashes and configurations."""
    models: dict[str, dict[str, TrialConfig]] = {}
    for trial_hash, config in plan.configs.items():
        models.setdefault(config.model_name, {})[trial_hash] = config
    return models


def _expected(configs: Mapping[str, TrialConfig], known: Mapping[str, float], train: int) -> Expected:
    """The durations of one model's trials: seconds per example plus seconds per optimizer step.

    Both rates are fitted to the known trials by least squares, and neither is negative. If all known trials
    take equally many steps per example, the rates cannot be told apart: examples then account for all time.
    """
    measured = [h for h in configs if h in known]
    if len(measured) in {0, len(configs)}:
        return Expected({h: known[h] for h in measured})
    ends = {h: config.position(config.evaluation_count, train) for h, config in configs.items()}
    costs = {h: np.array([end.examples, end.step], dtype=float) for h, end in ends.items()}
    table = np.array([costs[h] for h in measured])
    by_steps = np.linalg.matrix_rank(table / table.max(axis=0)) > 1
    if not by_steps:
        table = table[:, :1]
    rates, _ = optimize.nnls(table, np.array([known[h] for h in measured]))
    missing = [h for h in configs if h not in known]
    guessed = {h: float(costs[h][: len(rates)] @ rates) for h in missing}
    batches = listed([str(b) for b in sorted({configs[h].target_batch_size for h in missing})])
    basis = "examples and steps" if by_steps else "examples alone (a smaller batch takes longer)"
    return Expected({h: known[h] for h in measured} | guessed, f"{batches} by {basis}")


def _minutes(seconds: Collection[float]) -> str:
    ends = [f"{value / 60:,.1f}" for value in (min(seconds), max(seconds))]
    return " to ".join(dict.fromkeys(ends))


def smallest_differences(plan: Plan, chance: Chance) -> tuple[float, float]:
    """The differences that the most and the least sensitive comparison find with a power of 80 %.

    At the level of Holm's first step; NaN if one finds none, however large. ``chance`` must be known.
    """
    comparisons, examples = _comparisons(plan), plan.dataset.sizes["test"]
    freedoms, alpha = _freedoms(plan, comparisons), ALPHA / len(comparisons)
    found = [
        _planned(each, freedoms[frozenset(each.models)], examples, chance).detectable(alpha)
        for each in comparisons
    ]
    return (math.nan, math.nan) if any(map(math.isnan, found)) else (min(found), max(found))


def seeds_needed(plan: Plan, chance: Chance) -> Seeds:
    """How many seeds, the same for every cell, let every comparison resolve the margin.

    At least two: with one seed a verdict is about the trainings at hand. ``chance`` must be known.
    """
    comparisons, examples, margin = _comparisons(plan), plan.dataset.sizes["test"], plan.margin / 100
    alpha, counts = ALPHA / len(comparisons), (*range(2, MOST_SEEDS + 1), MANY)
    cells = min(map(len, _cells(plan, comparisons).values()))  # the fewest that share a variance

    def planned(seeds: int) -> SeedsDifference:
        return _over_seeds((seeds, seeds), cells * (seeds - 1), examples, chance)

    return Seeds(
        next((n for n in counts if planned(n).detectable(alpha) <= margin), None),
        next((n for n in counts if planned(n).equivalence_margin(alpha) <= margin), None),
    )


def _planned(comparison: Comparison, freedom: int, examples: int, chance: Chance) -> Difference:
    """Two cells without a difference, as the verdicts will see them."""
    if freedom:
        seeds = len(comparison.trials), len(comparison.baseline_trials)
        return _over_seeds(seeds, freedom, examples, chance)
    assert chance.disagreement
    discordant = round(chance.disagreement.value * examples)
    return TrainingsDifference(discordant // 2, discordant - discordant // 2, examples)


def _over_seeds(seeds: tuple[int, int], freedom: int, examples: int, chance: Chance) -> SeedsDifference:
    """The part of the example variance due to seeds cannot exceed the whole, hence the minimum."""
    assert chance.disagreement
    assert chance.seed_deviation
    disagreement, variance = chance.disagreement.value, chance.seed_deviation.value**2
    explained = 2 * min(disagreement / 2, examples * variance)
    of_seeds = variance * (1 / seeds[0] + 1 / seeds[1])
    return difference_over_seeds(0.0, of_seeds, (disagreement - explained) / examples, freedom, examples)


def _comparisons(plan: Plan) -> list[Comparison]:
    return planned_comparisons(StudyData(plan, {}))


def _freedoms(plan: Plan, comparisons: Iterable[Comparison]) -> Mapping[frozenset[str], int]:
    """Compared models -> the degrees of freedom of their cells' pooled variance over seeds."""
    found = _cells(plan, comparisons)
    return {models: sum(len(trials) - 1 for trials in cells) for models, cells in found.items()}


def _cells(
    plan: Plan, comparisons: Iterable[Comparison]
) -> Mapping[frozenset[str], Sequence[tuple[str, ...]]]:
    """Compared models -> the trials, one a seed, of each of their cells."""
    study = StudyData(plan, {})
    return {models: cells_of(study, models) for models in {frozenset(each.models) for each in comparisons}}

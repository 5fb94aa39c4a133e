"""From options to a plan: the space is resolved, the data are loaded, trials and bytes are counted."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from errors import UserError
from search_spaces import SearchSpace, Space, Stage, TrialConfig
from search_spaces.plan import Cell, DatasetFacts, Forecast, Plan, as_trained
from search_spaces.stages import Around, Outcomes
from search_spaces.trial_config import model_name
from sweep.footprint import Footprint
from sweep.hardware import gpu_expected
from sweep.options import SweepOptions
from sweep.resolve import resolve_space, sizes_passes
from tracking import check_study_name
from trainables.encoders import canonical_model, check_max_length, count_parameters, model_digest
from trainables.evaluation import METRICS
from trainables.review_facts import facts_of, warnings_of
from trainables.review_splits import ReviewSplits, load_splits

GPU_TOKENS_PER_PASS = 32_768  # more makes no GPU faster, and undoes the sorting by length


@dataclass(frozen=True)
class PlannedStudy:
    """A plan and its data; nothing is trained or written yet.

    ``resolve`` completes a configuration of the space: digests of data and model, the steps of its budget,
    passes that suit the machine.
    """

    plan: Plan
    splits: ReviewSplits
    resolve: Callable[[TrialConfig], TrialConfig]
    footprint: Footprint

    def stages(self, **around: Any) -> list[Stage]:
        """The study's stages; ``around`` is what a search needs to be carried out."""
        return self.plan.space.stages(Around(self.resolve, **around))

    def with_cells(self, stages: Iterable[Stage], outcomes: Outcomes) -> "PlannedStudy":
        """This study with the cells of those stages that keep models."""
        kept = [cell for stage in stages if stage.keeps_models for cell in stage.cells(outcomes)]
        cells = tuple(Cell(config=cell) for cell in kept)
        return replace(self, plan=self.plan.replace(cells=cells))

    def expecting(self, forecast: Forecast) -> "PlannedStudy":
        return replace(self, plan=self.plan.replace(forecast=forecast))


def make_plan(options: SweepOptions, bf16_available: bool) -> PlannedStudy:
    """Resolve the options, load the data and count; raises UserError for anything wrong."""
    check_study_name(options.study)
    space = resolve_space(options, bf16_available).with_models(canonical_model)
    shared = next(space.corners())
    _check_model_names(space.models)
    for model in space.models:
        check_max_length(model, shared.max_length)
    parameters = {model: count_parameters(model) for model in space.models}
    splits = load_splits(shared)
    digests = {model: model_digest(model) for model in space.models}
    _check_digests(digests)
    shared = shared.replace(dataset_digest=splits.digest())
    train = splits.sizes()["train"]
    fits_gpu = sizes_passes(options) and gpu_expected(options)

    def resolve(config: TrialConfig) -> TrialConfig:
        found = as_trained(
            config,
            budget=space.budget,
            dataset_digest=shared.dataset_digest,
            model_digests=digests,
            train_examples=train,
        )
        return _sized_for_gpu(found) if fits_gpu else found

    for corner in space.corners():
        resolve(corner).check_evaluations(train)
    dataset = _dataset_facts(shared, splits)
    metrics = {name: metric.label for name, metric in METRICS.items()}
    stages = space.stages(Around(resolve))
    first = stages[0].cells({}) if stages[0].keeps_models else ()  # later cells are not known yet
    plan = Plan(
        study=options.study,
        space=space,
        shared=shared,
        dataset=dataset,
        model_digests=digests,
        metrics=metrics,
        cells=tuple(Cell(config=cell) for cell in first),
        has_later_stages=len(stages) > 1,
    )
    largest = shared.replace(model=max(parameters, key=lambda model: parameters[model]))
    return PlannedStudy(plan, splits, resolve, Footprint(parameters, largest))


def _dataset_facts(config: TrialConfig, splits: ReviewSplits) -> DatasetFacts:
    return DatasetFacts(
        name=config.dataset.rstrip("/").rsplit("/", 1)[-1],
        source=config.dataset,
        digest=config.dataset_digest,
        sizes=splits.sizes(),
        label_names=splits.label_names,
        duplicates_dropped=splits.facts.duplicates_dropped,
        facts=facts_of(splits, config),
        warnings=warnings_of(splits, config),
    )


def colour_coordinates(space: Space | SearchSpace, config: TrialConfig) -> tuple[int, int, float]:
    """A trial's place in its study: number of model and of rule, from 0; batch size, from 0 to 1."""
    sizes, rules = sorted(space.target_batch_sizes), list(space.scaling_rules)
    return (
        list(space.models).index(config.model),
        rules.index(config.scaling_rule) if config.scaling_rule in rules else 0,
        bisect_left(sizes, config.target_batch_size) / max(1, len(sizes) - 1),
    )


def _sized_for_gpu(cell: TrialConfig) -> TrialConfig:
    """Passes of at most GPU_TOKENS_PER_PASS tokens; the trial halves them if memory runs out."""
    fitting = max(1, GPU_TOKENS_PER_PASS // cell.max_length)
    return cell.replace(physical_batch_size=min(cell.target_batch_size, fitting))


def _check_digests(digests: Mapping[str, str]) -> None:
    """Raise UserError for two models with the same files, which would be one trial."""
    by_digest: dict[str, str] = {}
    for model, digest in digests.items():
        if digest and (other := by_digest.setdefault(digest, model)) != model:
            raise UserError(f"models '{other}' and '{model}' are the same, file by file: name one of them")


def _check_model_names(models: Iterable[str]) -> None:
    """Raise UserError for two models with the same last part, which tables and pictures show alone."""
    by_name: dict[str, str] = {}
    for model in models:
        other = by_name.setdefault(name := model_name(model), model)
        if other != model:
            raise UserError(f"models '{other}' and '{model}' are both called {name}: rename a folder")

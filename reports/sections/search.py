"""What a search has found: the best configuration, and what it is worth when it is trained again."""

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
from optuna import Study
from optuna.visualization import matplotlib as drawing

from errors import UserError
from reports.canvas import drawn_by_pyplot, plain, png
from reports.content import Picture, Section, Table, rows
from reports.prose import accuracy_text, cell_text, counted, learning_rate_text, listed
from reports.sections import Source
from reports.study_data import StudyData
from search_spaces import TrialConfig
from search_spaces.optuna_trials import empty_study, finished_trial
from search_spaces.search_space import Parameter, SearchSpace
from search_spaces.stages import COMPLETE, DIVERGED, STOPPED, Outcome
from search_spaces.trial_config import DATA, epoch_text
from tracking.study_store import StudyRuns

PLACE = 10
_EDGE = 0.02  # of a range: what lies nearer to its end is at the edge
# of the command that trains the best again: options of their own, and what it says otherwise or not at all
_OPTIONS = DATA | {"max_length", "epochs", "evaluations", "base_lr", "engine"}
_SAID = "model target_batch_size scaling_rule seed precision physical_batch_size dataset_digest".split()
_SIZE = (5.4, 4.0)  # inches
_PER_PARAMETER = 2.3  # inches of width where the parameters stand side by side
_FEWEST = 2  # complete trials, below which there is nothing to compare


def section(source: Source) -> Section | None:
    """Of a search; it answers the question, and the verdicts say what its best is worth."""
    study, space = source.study, source.study.plan.search
    if space is None:
        return None
    search = read_search(space, study.plan.trial_of, source.runs)
    pictures = list(search_pictures(search))
    return Section(
        headline=headline(search, study),
        answer=pictures[0] if pictures else None,
        flags=flags(search, study.plan.dataset.sizes["val"]),
        tables={"best_trials": best_table(search)},
        heading="The search",
        pictures=pictures[1:],
    )


@dataclass(frozen=True)
class SearchData:
    """A search as it lies in MLflow: what was proposed, by number, and how it ended."""

    space: SearchSpace
    values: Sequence[Mapping[str, Any]]  # of the parameters of each trial
    outcomes: Sequence[Outcome | None]  # None: not ended

    @cached_property
    def trials(self) -> pd.DataFrame:
        """A row per trial: number, the parameters, state, best_val_acc, best_epoch, epochs."""
        found = pd.DataFrame({"number": range(len(self.values))})
        for name in self.space.parameters:
            found[name] = [values[name] for values in self.values]
        accuracies = [outcome.val_accs if outcome else () for outcome in self.outcomes]
        found["state"] = [outcome.state if outcome else "" for outcome in self.outcomes]
        found["best_val_acc"] = [max(each, default=math.nan) for each in accuracies]
        between = [c.epochs / c.evaluation_count for c in map(self.config, range(len(self.values)))]
        found["best_epoch"] = [each.index(max(each)) + 1 if each else 0 for each in accuracies]
        found["epochs"] = [len(each) for each in accuracies]
        for name in ("best_epoch", "epochs"):  # to the next whole step of the optimizer
            found[name] *= between
        return found

    @property
    def ended(self) -> int:
        return int((self.trials["state"] != "").sum())

    @cached_property
    def complete(self) -> pd.DataFrame:
        """The trials that came to their last epoch, the best first; ties by number."""
        complete = self.trials[self.trials["state"] == COMPLETE]
        return complete.sort_values(["best_val_acc", "number"], ascending=[False, True])

    @property
    def top(self) -> pd.DataFrame:
        """The ten best; a configuration that was proposed twice counts once."""
        return self.complete.drop_duplicates(list(self.space.parameters)).head(10)

    @property
    def best(self) -> Any:
        """The best complete trial, if there is one."""
        return next(rows(self.complete), None)

    def config(self, number: int) -> TrialConfig:
        return self.space.config(self.values[number])


def read_search(
    space: SearchSpace, trial_of: Callable[[TrialConfig], TrialConfig], runs: StudyRuns
) -> SearchData:
    """The proposals are in the tags of the invocations, the outcomes in the runs of the trials."""
    generations: dict[int, list[dict[str, Any]]] = {}
    for invocation in runs.invocations:
        generations |= invocation.generations
    in_order = [generations[number] for number in sorted(generations)]
    values = [each for generation in in_order for each in generation][: space.trials]
    if not all(map(space.holds, values)):
        raise UserError("the proposals of the search in MLflow are not of its parameters")
    found = [runs.trials.get(trial_of(space.config(each)).trial_hash) for each in values]
    return SearchData(space, values, [run.outcome(with_curve=True) if run else None for run in found])


def headline(search: SearchData, confirmation: StudyData) -> list[str]:
    """The best, what it is worth, and how to train it."""
    if search.best is None:
        return [f"Of {counted(search.ended, 'trial')} that have ended none came to its last epoch."]
    trials, best = search.space.trials, search.best
    named = ", ".join(f"{name} {_text(getattr(best, name))}" for name in search.space.parameters)
    found = f"val_acc {accuracy_text(best.best_val_acc)} at epoch {epoch_text(best.best_epoch)}"
    if search.ended < trials:
        so_far = f"{search.ended} of {counted(trials, 'trial')} have ended. The best so far is"
        return [f"{so_far} trial {best.number}: {named} ({found})."]
    return [
        f"The best of {counted(trials, 'trial')} is trial {best.number}: {named} ({found}).",
        _worth(search, confirmation),
        f"Train it again: {train_again(search.config(best.number))}",
    ]


def _worth(search: SearchData, confirmation: StudyData) -> str:
    in_search = search.best.best_val_acc
    chosen = f"{accuracy_text(in_search)} in the search is the best of {search.ended}"
    test_acc = confirmation.metric("test_acc").dropna()
    val_acc = confirmation.metric("best_val_acc")[test_acc.index]
    if test_acc.empty:
        return f"{chosen} and flatters; it has not been trained again yet."
    seconds = [sum(trial.evaluations.get("epoch_seconds", [])) for trial in confirmation.trials.values()]
    minutes = float(np.mean(seconds)) / 60
    flatters = " and flatters" if in_search > val_acc.mean() else ""
    return (
        f"{chosen}{flatters}; trained again with {counted(len(test_acc), 'seed')} it has "
        f"val_acc {_spread(val_acc)} and test_acc {_spread(test_acc)}. "
        f"One training takes {minutes:.1f} minutes."
    )


def _spread(values: pd.Series) -> str:
    """Mean and standard deviation over seeds."""
    deviation = f" ± {values.std():.4f}" if len(values) > 1 else ""
    return f"{values.mean():.4f}{deviation}"


def train_again(config: TrialConfig) -> str:
    """The command that trains this configuration as a plain study."""
    parts = ["python tune_main.py --space fixed_lr --name best", "--models", shlex.quote(config.model)]
    parts += ["--target-batch-sizes", str(config.target_batch_size), "--scaling-rules", config.scaling_rule]
    parts += ["--precision", config.precision, "--seed", str(config.seed)]
    for name, value in config.to_dict().items():
        if name in _SAID or value == TrialConfig.model_fields[name].default:
            continue
        if name in _OPTIONS:
            parts += ["--" + name.replace("_", "-"), shlex.quote(str(value))]
        else:
            parts += ["--set", shlex.quote(f"{name}={value}")]
    return " ".join(parts)


def flags(search: SearchData, val_examples: int) -> list[str]:
    """What a reader should know before believing a search."""
    if search.best is None:
        return _ending_flags(search)
    return [*_edge_flags(search), *_order_flags(search, val_examples), *_ending_flags(search)]


def _edge_flags(search: SearchData) -> list[str]:
    found = []
    for name, parameter in search.space.parameters.items():
        best = getattr(search.best, name)
        if edge := _edge(parameter, best):
            found.append(f"{edge} {name} ({_text(best)})")
    if not found:
        return []
    return [f"The best configuration has {listed(found)} that was searched: beyond it there may be better."]


def _edge(parameter: Parameter, value: Any) -> str:
    """``the smallest`` or ``the largest`` of the range, or ``nearly`` so; else empty."""
    if parameter.kind == "choice":
        numbers = [each for each in parameter.ends if isinstance(each, int | float)]
        if len(numbers) < max(3, len(parameter.values)):
            return ""
        place = (value - min(numbers)) / (max(numbers) - min(numbers))
        return {0: "the smallest", 1: "the largest"}.get(place, "")
    scale = math.log if parameter.kind == "log_uniform" else float
    low, high = map(scale, parameter.ends)
    place = (scale(value) - low) / (high - low)
    if parameter.ends[0] == 0 and place < _EDGE:
        return ""  # there is nothing below 0
    return "nearly the smallest" if place < _EDGE else "nearly the largest" if place > 1 - _EDGE else ""


def _order_flags(search: SearchData, val_examples: int) -> list[str]:
    """Whether the best trials are further apart than their validation examples alone would scatter them."""
    mean = (top := search.top["best_val_acc"]).mean()
    within = 1.96 * math.sqrt(2 * mean * (1 - mean) / val_examples)
    if len(top) < 2 or top.max() - top.min() > within:
        return []
    return [
        f"The best {len(top)} trials lie within {100 * (top.max() - top.min()):.1f} points. With "
        f"{val_examples:,} validation examples two equal trials differ by up to {100 * within:.1f}: "
        "their order says little."
    ]


def _ending_flags(search: SearchData) -> list[str]:
    ended = search.trials[search.trials["state"] != ""]
    found, states, all_of_them = [], ended["state"].value_counts(), counted(len(ended), "trial")
    if diverged := states.get(DIVERGED):
        found.append(f"{diverged} of {all_of_them} diverged: search lower learning rates.")
    if stopped := states.get(STOPPED):
        planned = sum(search.config(number).epochs for number in ended["number"])
        found.append(
            f"{stopped} of {all_of_them} were stopped early, below the median of the earlier ones: "
            f"{epoch_text(ended['epochs'].sum())} of {counted(planned, 'epoch')} were trained."
        )
    return found


def best_table(search: SearchData) -> Table:
    """The ten best trials."""
    columns: dict[str, Callable[[Any], str]] = {"trial": lambda best: f"#{best.number}"}
    for name in search.space.parameters:
        columns[name] = partial(_parameter_text, name)
    columns["val_acc"] = lambda best: accuracy_text(best.best_val_acc)
    columns["best epoch"] = lambda best: epoch_text(best.best_epoch)
    note = f"Of {counted(search.ended, 'trial')}; {len(search.complete)} came to their last epoch."
    return Table.of("The best trials of the search", rows(search.top), columns, note=note, folded=False)


def _parameter_text(name: str, trial: Any) -> str:
    return _text(getattr(trial, name))


def _text(value: Any) -> str:
    return learning_rate_text(value) if isinstance(value, float) and value else cell_text(value)


def search_pictures(search: SearchData) -> Iterator[Picture]:
    """History, importances, slices and parallel coordinates; none before two trials are complete."""
    if len(search.complete) < _FEWEST:
        return
    study, width = _as_optuna_study(search), max(8.0, _PER_PARAMETER * len(search.space.parameters))
    for name, (draw, is_broad, title, caption) in _PICTURES.items():
        if draw is drawing.plot_param_importances and search.complete["best_val_acc"].nunique() == 1:
            continue
        size = (width, _SIZE[1]) if is_broad else _SIZE
        drawn = drawn_by_pyplot(size, draw, study, target_name="val_acc")
        about = {"name": name, "title": title, "caption": caption, "alt": f"{title}: {caption}"}
        yield Picture(**about, broad=is_broad, png=png(drawn, cropped=True))


def _as_optuna_study(search: SearchData) -> Study:
    """The trials that have ended, their texts as matplotlib shows them unchanged."""
    study = empty_study()
    parameters = {
        name: parameter.model_copy(update={"values": tuple(map(_plain, parameter.values))})
        for name, parameter in search.space.parameters.items()
    }
    shown = search.space.replace(parameters=parameters)
    for values, outcome in zip(search.values, search.outcomes, strict=True):
        if outcome:
            plain_values = {name: _plain(value) for name, value in values.items()}
            study.add_trial(finished_trial(shown, plain_values, outcome))
    return study


def _plain(value: Any) -> Any:
    return plain(value) if isinstance(value, str) else value


def _slices(study: Study, **named: Any) -> Any:
    """Slices whose ticks, names of models among them, do not run into each other."""
    slices: Any = drawing.plot_slice(study, **named)
    for axes in np.ravel(slices):
        axes.tick_params("x", rotation=25)
    return slices


_PICTURES: dict[str, tuple[Callable[..., Any], bool, str, str]] = {  # how it is drawn, whether it is broad
    "search_history": (
        drawing.plot_optimization_history,
        False,
        "the best so far",
        "A dot is a trial that came to its last epoch; the line is the best so far.",
    ),
    "search_importances": (
        drawing.plot_param_importances,
        False,
        "which parameters matter",
        "PED-ANOVA (Watanabe et al. 2023): how much a parameter alone sets the better trials apart. "
        "With few trials this is a hint.",
    ),
    "search_slices": (
        _slices,
        True,
        "each parameter by itself",
        "A dot is a complete trial, darker the later it was proposed.",
    ),
    "search_parallel_coordinates": (
        drawing.plot_parallel_coordinate,
        True,
        "all parameters together",
        "A line is a complete trial, darker the higher its val_acc.",
    ),
}

"""A search's trials in Optuna's words, for its samplers, its pictures and its dashboard."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from search_spaces.search_space import Parameter, SearchSpace
from search_spaces.stages import COMPLETE, DIVERGED, Outcome

if TYPE_CHECKING:  # loading Optuna takes a while, and most commands do without
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial


def empty_study(sampler: "BaseSampler | None" = None) -> "Study":
    """An Optuna study in memory."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    return optuna.create_study(direction="maximize", sampler=sampler)


def distributions(space: SearchSpace) -> "dict[str, BaseDistribution]":
    """The box. Listed values are categorical, so that the sampler presumes no order."""
    return {name: _distribution(parameter) for name, parameter in space.parameters.items()}


def _distribution(parameter: Parameter) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.kind == "choice":
        return CategoricalDistribution(parameter.values)
    low, high = parameter.ends
    is_whole = isinstance(low, int) and isinstance(high, int)
    return (IntDistribution if is_whole else FloatDistribution)(
        low, high, log=parameter.kind == "log_uniform"
    )


def finished_trial(space: SearchSpace, values: Mapping[str, Any], outcome: Outcome) -> "FrozenTrial":
    """A trial with the evaluations' val_acc as intermediate values.

    One that diverged counts as pruned without a value: samplers ignore failed trials, and go there again.
    """
    from optuna.trial import TrialState, create_trial

    val_accs = {} if outcome.state == DIVERGED else dict(enumerate(outcome.val_accs, start=1))
    value = outcome.best_val_acc if outcome.state == COMPLETE else val_accs.get(len(val_accs))
    return create_trial(
        state=TrialState.COMPLETE if outcome.state == COMPLETE else TrialState.PRUNED,
        value=value,
        params=dict(values),
        distributions=distributions(space),
        intermediate_values=val_accs,
    )

"""The gradient noise scale against the target batch sizes of the grid."""

import math
from collections.abc import Iterator

from reports.charts.style import Look, batch_axis, epoch_axis, new_figure, trials_picture
from reports.content import Picture
from reports.study_data import StudyData, TrialData

CAPTION = (
    "A diagnostic, not a law: tr(Σ)/‖G‖² of the plain gradient (McCandlish et al. 2018). It takes examples "
    "for independent draws, counts dropout as noise and knows nothing of Adam. Above the dashed line the "
    "noise scale exceeds the batch, and a larger batch still averages noise away; far below it, extra "
    "examples per step are mostly wasted."
)


def noise_pictures(study: StudyData) -> Iterator[Picture]:
    """Per model: the noise scale of each trial over its whole training, and epoch by epoch."""
    for model in study.axis_values("model"):
        trials = study.trials_of(model)
        measured = [trial for trial in trials if not math.isnan(noise_scale(trial))]
        if measured:
            yield _against_batches(study, model, measured)
        if by_epoch := [trial for trial in measured if "noise_scale" in trial.epochs]:
            yield _by_epoch(study, model, by_epoch)


def noise_scale(trial: TrialData) -> float:
    """tr(Σ)/‖G‖² of a whole training, in examples; both terms are averaged before they are divided.

    NaN where it was not measured, or where ‖G‖² drowned in the noise.
    """
    if "gradient_variance" not in trial.epochs:
        return math.nan
    terms = trial.epochs[["gradient_variance", "gradient_norm_squared"]].dropna().mean()
    if not terms["gradient_norm_squared"] > 0:
        return math.nan
    return float(terms["gradient_variance"] / terms["gradient_norm_squared"])


def _against_batches(study: StudyData, model: str, trials: list[TrialData]) -> Picture:
    look = Look.of(study)
    figure, axes = new_figure()
    axes.plot(look.batches, look.batches, "--", color="dimgray", linewidth=1, label="target batch size")
    for trial in trials:
        style = {
            "color": look.colour(trial.target_batch_size),
            "marker": look.marker(trial.scaling_rules[0]),
        }
        axes.plot([trial.target_batch_size], [noise_scale(trial)], label=trial.label, ls="", ms=8, **style)
    batch_axis(axes, look.batches)
    axes.set_yscale("log")
    axes.set_ylabel("noise scale (examples, log scale)")
    return trials_picture(
        figure,
        axes,
        model,
        name="noise_scale",
        title="gradient noise scale",
        caption=CAPTION,
        alt=f"Gradient noise scale of each trial of {model} against its target batch size.",
    )


def _by_epoch(study: StudyData, model: str, trials: list[TrialData]) -> Picture:
    look = Look.of(study)
    figure, axes = new_figure()
    for trial in trials:
        line = trial.epochs["noise_scale"].dropna()
        axes.plot(line.index, line, label=trial.label, marker=".", **look.of_trial(trial))
    axes.set_yscale("log")
    epoch_axis(axes)
    axes.set_ylabel("noise scale (examples, log scale)")
    return trials_picture(
        figure,
        axes,
        model,
        name="noise_scale_by_epoch",
        title="gradient noise scale by epoch",
        caption="Few windows are measured in an epoch: read the trend, not the single point.",
        alt=f"Gradient noise scale of each trial of {model} by epoch.",
    )

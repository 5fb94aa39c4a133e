"""The pictures of a search: Optuna's own, in the look of the report."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna import Study
from optuna.visualization import matplotlib as drawing

from reports.canvas import COLOURS, plain, png
from reports.content import Picture
from reports.searches import SearchData
from search_spaces.optuna_trials import empty_study, finished_trial
from search_spaces.search_space import Choice

_VALUE = "val_acc"
_SIZE = (5.4, 4.0)  # inches
_PER_PARAMETER = 2.3  # inches of width where the parameters stand side by side
_FEWEST = 2  # complete trials, below which there is nothing to compare


def search_pictures(search: SearchData) -> Iterator[Picture]:
    """History, importances, slices and parallel coordinates; none before two trials are complete."""
    if len(search.complete) < _FEWEST:
        return
    study = empty_study()
    parameters = {
        name: Choice(tuple(map(_plain, parameter.values))) if isinstance(parameter, Choice) else parameter
        for name, parameter in search.space.parameters.items()
    }
    shown = search.space.replace(parameters=parameters)
    for values, outcome in zip(search.values, search.outcomes, strict=True):
        if outcome:
            plain_values = {name: _plain(value) for name, value in values.items()}
            study.add_trial(finished_trial(shown, plain_values, outcome))
    broad = (max(8.0, _PER_PARAMETER * len(parameters)), _SIZE[1])
    yield _picture(
        _drawn(drawing.plot_optimization_history, study, _SIZE, target_name=_VALUE),
        "search_history",
        "the best so far",
        "A dot is a trial that came to its last epoch; the line is the best so far.",
    )
    if search.complete["best_val_acc"].nunique() > 1:
        yield _picture(
            _drawn(drawing.plot_param_importances, study, _SIZE, target_name=_VALUE),
            "search_importances",
            "which parameters matter",
            "PED-ANOVA (Watanabe et al. 2023): how much a parameter alone sets the better trials apart. "
            "With few trials this is a hint.",
        )
    yield _picture(
        _drawn(_slices, study, broad, target_name=_VALUE),
        "search_slices",
        "each parameter by itself",
        "A dot is a complete trial, darker the later it was proposed.",
        broad=True,
    )
    yield _picture(
        _drawn(drawing.plot_parallel_coordinate, study, broad, target_name=_VALUE),
        "search_parallel_coordinates",
        "all parameters together",
        "A line is a complete trial, darker the higher its val_acc.",
        broad=True,
    )


def _plain(value: Any) -> Any:
    return plain(value) if isinstance(value, str) else value


def _drawn(draw: Callable[..., Any], study: Study, size: tuple[float, float], **named: Any) -> Figure:
    """One of Optuna's pictures on a white page, without its title, closed for pyplot."""
    from matplotlib import pyplot as plt

    plt.switch_backend("Agg")
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each of the functions calls itself experimental
        axes = np.ravel(draw(study, **named))
    found = axes[0].figure
    plt.close(found)
    found.set_layout_engine("none")
    found.set_size_inches(*size)
    found.suptitle("")
    for each in found.axes:
        _restyle(each)
    return found


def _slices(study: Study, **named: Any) -> Any:
    """Slices whose ticks, names of models among them, do not run into each other."""
    slices: Any = drawing.plot_slice(study, **named)
    for axes in np.ravel(slices):
        axes.tick_params("x", rotation=25)
    return slices


def _restyle(axes: Axes) -> None:
    for place in ("left", "center"):
        axes.set_title("", loc=place)
    axes.set_facecolor("white")
    axes.grid(alpha=0.25, linewidth=0.6, color="grey")
    axes.spines[["left", "bottom"]].set_color("black")
    axes.tick_params(labelsize="small", colors="black")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color("black")
    for number, line in enumerate(axes.get_lines()):
        line.set_color(COLOURS[(number + 1) % len(COLOURS)])
    if legend := axes.get_legend():
        legend.remove()


def _picture(drawn: Figure, name: str, title: str, caption: str, broad: bool = False) -> Picture:
    drawing_of = {"name": name, "title": title, "caption": caption, "alt": f"{title}: {caption}"}
    return Picture(**drawing_of, broad=broad, png=png(drawn, cropped=True))

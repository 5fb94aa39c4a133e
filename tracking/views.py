"""The two views of a study in ``mlflow ui``: its trials as a table, and their curves.

MLflow keeps a saved view in a tag of the experiment. The format is that of MLflow 3.17's page, and is not
documented. A page that does not know the format opens without the view; nothing else is lost.
"""

import colorsys
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

TRIALS, CURVES = "trials", "curves"  # the keys of the views in an address
_COLOUR = "mlflow.runColor"
_TRIALS_THAT_COUNT = "tags.trial_hash LIKE '%' AND tags.superseded IS NULL"
_CHECKBOX, _RUN_NAME = "1", "attributes.`Run Name`"  # the first columns of the table
_RESULTS = ("best_val_acc", "best_epoch", "test_acc", "last_test_acc")
_CURVES = ("val_acc", "val_loss", "train_loss")
_HUES = (0.58, 0.05, 0.42, 0.85)  # blue, orange, green, pink: one for each model
_HUE_OF_RULE = 0.035  # from one scaling rule to the next
_DARKEST, _LIGHTEST = 0.26, 0.58


def view_tag(key: str) -> str:
    """The experiment's tag that holds a view."""
    return f"mlflow.sharedViewState.{key}"


def view_tags(parameters: Sequence[str]) -> dict[str, str]:
    """The experiment's tags that hold both views; trials differ in ``parameters``."""
    columns = [*(f"params.`{name}`" for name in parameters), *map(_metric, _RESULTS)]
    shared = {
        "searchFilter": _TRIALS_THAT_COUNT,
        "orderByKey": _metric("best_val_acc"),
        "orderByAsc": False,
        "runsHiddenMode": "SHOW_ALL",
        "selectedColumns": columns,
        "columnOrder": [_CHECKBOX, _RUN_NAME, *columns],
        "columnWidths": {_RUN_NAME: 270},
    }
    views = {TRIALS: ("Trials", shared), CURVES: ("Curves", shared | _charts(parameters))}
    return {view_tag(key): _stored(name, state) for key, (name, state) in views.items()}


def view_address(server: str, experiment_id: str, key: str) -> str:
    """The address of a view on this server, for a browser."""
    query = {"workflowType": "machine_learning", "viewStateShareKey": key}
    if key == CURVES:
        query["compareRunsMode"] = "CHART"
    return f"{server}/#/experiments/{experiment_id}/runs?{urlencode(query)}"


def colour_tag(model: int, rule: int, size: float) -> dict[str, str]:
    """A trial's colour, as a tag of its run: a hue for its model and rule, darker the smaller its batch.

    ``model`` and ``rule`` count from 0; ``size`` is from 0, the smallest target batch size, to 1.
    """
    hue = (_HUES[model % len(_HUES)] + _HUE_OF_RULE * rule) % 1
    lightness = _DARKEST + (_LIGHTEST - _DARKEST) * size
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.75)
    return {_COLOUR: "#" + "".join(f"{round(255 * part):02x}" for part in (red, green, blue))}


def _stored(name: str, state: dict[str, Any]) -> str:
    return json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


def _metric(name: str) -> str:
    return f"metrics.`{name}`"


def _charts(parameters: Sequence[str]) -> dict[str, Any]:
    """Curves first, then results; the page's own section of all other metrics is below, folded."""
    sections = {
        "epochs": "By evaluation",
        "results": "Results",
        "other": "Model metrics",
        "system": "System metrics",
    }
    shown = [_chart("LINE", name, "epochs") for name in _CURVES]
    shown.append(_chart("BAR", "test_acc", "results"))
    parallel = {
        "selectedParams": list(parameters),
        "selectedMetrics": ["best_val_acc"],
        "showAllRuns": True,
    }
    shown.append(_chart("PARALLEL", "", "results") | parallel)
    return {
        "compareRunCharts": shown,
        "compareRunSections": [
            {
                "uuid": key,
                "name": name,
                "display": key in {"epochs", "results"},
                "isReordered": False,
                "deleted": False,
                "isGenerated": False,
            }
            for key, name in sections.items()
        ],
        "isAccordionReordered": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0},
    }


def _chart(kind: str, metric: str, section: str) -> dict[str, Any]:
    chart = {"uuid": f"{kind}-{metric}", "type": kind, "metricSectionId": section, "deleted": False}
    chart |= {"isGenerated": False, "runsCountToCompare": 100}
    if metric:
        chart["metricKey"] = metric
    if kind == "LINE":
        chart |= {
            "selectedMetricKeys": [metric],
            "xAxisKey": "step",
            "displayPoints": True,
            "lineSmoothness": 0,
        }
    return chart

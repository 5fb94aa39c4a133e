"""The numbers of trials in training, for those who watch a cluster: Ray exports them to Prometheus."""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

# Ray puts `ray_` before the names
EXPORTED = {
    "epoch": "Epochs trained, in parts of one too",
    "train_loss": "Mean training loss since the evaluation before the newest (nats)",
    "val_acc": "Accuracy on the val split at the newest evaluation (fraction of 1)",
    "examples_per_second": "Training examples per second up to the newest evaluation",
    "physical_batch_size": "Examples per forward and backward pass",
    "peak_gpu_memory": "Most GPU memory that tensors took up to the newest evaluation (bytes)",
}


class ExportedMetrics:
    """A gauge per number, tagged with the study and the trial's name; for the driver of a running Ray."""

    def __init__(self, study: str) -> None:
        self._study = study
        self._gauges = {
            name: Gauge(f"batchscale_{name}", description, tag_keys=("study", "trial"))
            for name, description in EXPORTED.items()
        }

    def evaluated(self, trial: str, report: Mapping[str, Any]) -> None:
        """A trial was evaluated; a number that its report lacks keeps its value."""
        for name, gauge in self._gauges.items():
            if name in report:
                gauge.set(report[name], self._tags(trial))

    def trial_ended(self, trial: str) -> None:
        """A trial has ended: its speed is 0, its other numbers stay visible."""
        self._gauges["examples_per_second"].set(0.0, self._tags(trial))

    def _tags(self, trial: str) -> dict[str, str]:
        # Ray fails on letters outside ASCII
        name = trial.replace(" · ", " ").encode("ascii", "backslashreplace").decode()
        return {"study": self._study, "trial": name}

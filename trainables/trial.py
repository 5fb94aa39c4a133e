"""Trial: build it, run it to each evaluation, save it, restore it. Knows neither Ray nor MLflow."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from search_spaces import TrialConfig
from search_spaces.trial_config import Position, epoch_text
from search_spaces.update import OPTIMIZERS, learning_rate_factor
from trainables.accumulation import ENGINES, DoesNotFitError, StepResult, half_after, is_out_of_memory
from trainables.assets import TrialAssets
from trainables.batches import TokenTensors, derive_seed, generator, windows_between
from trainables.checkpoint import Checkpoint, CorruptCheckpointError, Weights
from trainables.evaluation import evaluate
from trainables.noise_scale import (
    NoiseSample,
    measured_windows,
    noise_metrics,
    noise_sample,
    squared_norm,
    window_parts,
)

CURVE_POINTS = 50  # rows of a report's step_curve, at most

Report = dict[str, Any]


class NonFiniteLossError(RuntimeError):
    """Training diverged: the loss of a step is NaN or infinite."""


class Trial:
    """One configuration, trained once.

    ``history`` holds a report per evaluation. Of the evaluation: its ``Position`` (``evaluation``,
    ``step``, ``examples``, ``epoch``), ``reported_at`` (ms since 1970), ``val_<metric>`` and
    ``train_eval_<metric>`` for each metric of ``evaluation.METRICS``, ``val_correct``, a bit for each val
    example as hex digits, and ``val_flips``, the number of bits that differ from the evaluation before.
    ``train_eval_<metric>`` is computed on a random part of the training split, as large as the val split
    and the same in all trials of a study. Of the training since the evaluation before: ``train_loss``,
    ``train_acc``, ``examples_per_second``, ``epoch_seconds`` (of all since the evaluation before, this
    evaluation included), ``physical_batch_size`` at the end, ``step_curve``, rows of (optimizer step,
    loss, accuracy, learning rate), and the ``noise_metrics`` if noise was measured.

    ``physical_batch_size`` starts as the configuration's and is halved if memory runs out. The target
    batch size, the steps and the learning rates do not change then.
    """

    def __init__(self, config: TrialConfig, assets: TrialAssets, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.assets_digest = assets.digest
        self.physical_batch_size = config.physical_batch_size
        self.history: list[Report] = []
        self.train = TokenTensors(assets.train, assets.pad_token, device)
        self.val = TokenTensors(assets.val, assets.pad_token, device)
        order = torch.randperm(len(self.train), generator=generator(config.split_seed, "train part"))
        self._train_part = order[: len(self.val)].sort().values
        self.model = assets.encoder.build(assets.classes, config.head_dropout, config.seed).to(device)
        spec = OPTIMIZERS[config.optimizer]
        self.optimizer = getattr(torch.optim, spec.torch_name)(
            self.model.parameters(), **config.update.arguments(), **spec.options
        )
        steps = config.total_steps(len(self.train))
        warmup_steps = config.warmup_steps(len(self.train))
        self.scheduler = LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(config.scheduler, step, warmup_steps, steps)
        )
        self.engine = ENGINES[config.engine](self.model, self.optimizer, config.precision)
        self._best_weights: Weights = {}

    @property
    def steps_per_epoch(self) -> int:
        return self.config.steps_per_epoch(len(self.train))

    @property
    def evaluation(self) -> int:
        """How often the trial has been evaluated."""
        return len(self.history)

    @property
    def is_finished(self) -> bool:
        return self.evaluation >= self.config.evaluation_count

    def run_to_evaluation(self) -> Report:
        """Train up to the next evaluation, evaluate, and report.

        Raises NonFiniteLossError, naming the step. Raises DoesNotFitError if memory runs out with one
        example at a time, or within the optimizer's own step.
        """
        config, started = self.config, time.perf_counter()
        before, now = (config.position(self.evaluation + more, len(self.train)) for more in (0, 1))
        steps, rates, samples = [], [], []
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        self.model.train()
        with torch.random.fork_rng(devices=[self.device] if on_gpu else []):
            for epoch, number, window in self._windows(before.step, now.step):
                dropout_seed = derive_seed(config.seed, "dropout", epoch, number)
                measured = number in measured_windows(config, len(self.train), epoch)
                result, sample = self.accumulate(window, dropout_seed, measured)
                self._update()
                steps.append(result)
                if sample:
                    samples.append(sample)
                rates.append(float(self.scheduler.get_last_lr()[0]))
                self.scheduler.step()
        sums, first_step = _sums(steps), before.step + 1
        self._check_finite(sums[0], first_step)
        training_seconds = time.perf_counter() - started
        metrics = self._evaluate(now)
        train_loss, train_acc = _means(sums)
        report = {
            **now._asdict(),
            "reported_at": int(time.time() * 1000),
            "train_loss": train_loss,
            "train_acc": train_acc,
            **noise_metrics(samples),
            **metrics,
            "examples_per_second": (now.examples - before.examples) / training_seconds,
            "epoch_seconds": time.perf_counter() - started,
            "physical_batch_size": self.physical_batch_size,
            **({"peak_gpu_memory": torch.cuda.max_memory_allocated(self.device)} if on_gpu else {}),
            "step_curve": _curve(sums, rates, first_step),
        }
        self.history.append(report)
        if best_evaluation(self.history) == self.evaluation:
            self._best_weights = self._weights()
        return report

    def _windows(self, first: int, last: int) -> Iterator[tuple[int, int, Tensor]]:
        config = self.config
        return windows_between(first, last, len(self.train), config.target_batch_size, config.seed)

    def _evaluate(self, position: Position) -> Report:
        precision = self.config.precision
        val = evaluate(self.model, self.val, precision)
        part = evaluate(self.model, self.train, precision, self._train_part)
        found: Report = {f"val_{name}": value for name, value in val.metrics.items()}
        found |= {f"train_eval_{name}": value for name, value in part.metrics.items()}
        found["val_correct"] = np.packbits(val.correct).tobytes().hex()
        if self.history:
            changed = int(self.history[-1]["val_correct"], 16) ^ int(found["val_correct"], 16)
            found["val_flips"] = changed.bit_count()
        if not math.isfinite(found["val_loss"]):
            where = f"after epoch {epoch_text(position.epoch)}"
            raise NonFiniteLossError(f"val_loss is {found['val_loss']} {where}")
        return found

    def _check_finite(self, losses: Tensor, first_step: int) -> None:
        for step, loss in enumerate(losses.tolist(), start=first_step):
            if not math.isfinite(loss):
                epoch = (step - 1) // self.steps_per_epoch + 1
                raise NonFiniteLossError(
                    f"train_loss is {loss} at step {step} (epoch {epoch}): "
                    "the learning rate is probably too high"
                )

    def accumulate(
        self, window: Tensor, dropout_seed: int, measure: bool
    ) -> tuple[StepResult, NoiseSample | None]:
        """Accumulate the gradient of ``window``, indices of training examples, (n,) int64 on the CPU.

        Changes no weight. If memory runs out, the window is repeated from its start, with the same dropout
        seed, at half the physical batch size, which then stays. With ``measure`` the gradient's noise is
        returned too, if the window has at least two examples; the gradient is the same either way.
        """
        physical = min(self.physical_batch_size, len(window))
        while True:
            try:
                parts = window_parts(window) if measure else ()
                norms = self._squared_norms(parts, physical, derive_seed(dropout_seed, "noise"))
                torch.manual_seed(dropout_seed)
                step = self.engine.accumulate(self.train.batches(window, physical))
                if not norms:
                    return step, None
                whole, part = squared_norm(self.model), len(parts[0])
                return step, noise_sample(whole, len(window), norms, part, len(self.train))
            except Exception as error:
                physical = self.physical_batch_size = half_after(error, physical)

    def _squared_norms(self, parts: Sequence[Tensor], physical: int, dropout_seed: int) -> list[Tensor]:
        """‖gradient‖² of the mean loss over each part of a window, () each on the device."""
        torch.manual_seed(dropout_seed)
        norms = []
        for part in parts:
            self.engine.accumulate(self.train.batches(part, physical))
            norms.append(squared_norm(self.model))
        return norms

    def _update(self) -> None:
        try:
            self.engine.update()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise DoesNotFitError(
                "out of memory in the optimizer's step, which cannot be repeated: give trials more memory "
                "(--gpus-per-trial, --max-concurrent) or set a smaller model, and run the command again"
            ) from error

    def save(self, folder: Path) -> None:
        """Write the whole state into ``folder``; after the last step, without the optimizer's state."""
        is_best = best_evaluation(self.history) == self.evaluation
        Checkpoint(
            trial_hash=self.config.trial_hash,
            assets_digest=self.assets_digest,
            history=self.history,
            weights=self._weights(),
            best_weights=None if is_best else self._best_weights,
            optimizer=None if self.is_finished else self.optimizer.state_dict(),
            scheduler=None if self.is_finished else self.scheduler.state_dict(),
        ).save(folder)

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint that this trial's ``TrialFolder`` found.

        The physical batch size is the smaller of the configured and the checkpoint's. Raises
        CorruptCheckpointError if the checkpoint does not hold what this trial saves.
        """
        checkpoint = Checkpoint.load(folder)
        if checkpoint.optimizer and checkpoint.scheduler:
            self.optimizer.load_state_dict(checkpoint.optimizer)
            self.scheduler.load_state_dict(checkpoint.scheduler)
        elif len(checkpoint.history) < self.config.evaluation_count:
            raise CorruptCheckpointError(f"{folder} lacks the optimizer's state")
        self.model.load_state_dict(checkpoint.weights)
        self.history = checkpoint.history
        self.physical_batch_size = min(self.physical_batch_size, self.history[-1]["physical_batch_size"])
        best = checkpoint.best_weights or checkpoint.weights
        # clone: loaded weights are mapped from the file, which is removed after newer checkpoints
        self._best_weights = {name: value.clone() for name, value in best.items()}

    def _weights(self) -> Weights:
        state = self.model.state_dict()
        return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in state.items()}


def best_evaluation(history: Sequence[Report]) -> int:
    """The evaluation of the highest val_acc, counted from 1, the earliest on ties; 0 before the first."""
    val_accs = [report["val_acc"] for report in history]
    return val_accs.index(max(val_accs)) + 1 if val_accs else 0


def _sums(steps: Sequence[StepResult]) -> Tensor:
    """Loss sums, correct counts and example counts, (3, steps) float64 on the CPU."""
    losses, hits, examples = zip(*steps, strict=True)
    rows = torch.stack(losses), torch.stack(hits), torch.tensor(examples)
    return torch.stack([row.double().cpu() for row in rows])


def _means(sums: Tensor) -> tuple[float, float]:
    """Mean loss and accuracy of an example, from ``_sums`` of some steps."""
    loss, correct, examples = (float(row.sum()) for row in sums)
    return loss / examples, correct / examples


def _curve(sums: Tensor, rates: Sequence[float], first_step: int) -> list[tuple[int, float, float, float]]:
    """At most CURVE_POINTS rows of (step, loss, accuracy, learning rate).

    If there are more steps, a row holds the means over the examples of several, and the number and rate
    of the last.
    """
    width = math.ceil(len(rates) / CURVE_POINTS)
    rows, last = [], -1
    for some in sums.split(width, dim=1):
        last += some.shape[1]
        rows.append((first_step + last, *_means(some), rates[last]))
    return rows

"""Trial: build it, run it epoch by epoch, save it, restore it. Knows neither Ray nor MLflow."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from search_spaces import TrialConfig
from search_spaces.optimization import OPTIMIZERS, learning_rate_factor
from trainables.accumulation import StepResult, build_engine
from trainables.checkpoint import Checkpoint, Weights, check_origin
from trainables.encoders import EncoderAssets
from trainables.evaluation import evaluate
from trainables.memory import DoesNotFitError, is_out_of_memory, shrink_to_fit
from trainables.noise_scale import GradientGroups, NoiseSample, measured_cut, noise_metrics
from trainables.seeding import derive_seed
from trainables.tokens import TokenArrays
from trainables.windows import TokenTensors, epoch_windows

CURVE_POINTS_PER_EPOCH = 50

EpochReport = dict[str, Any]


class NonFiniteLossError(RuntimeError):
    """Training diverged: the loss of a step is NaN or infinite."""


@dataclass(frozen=True)
class TrialAssets:
    """What the driver prepares once per model. The test split is not among it.

    ``digest`` identifies weights and tokens: a checkpoint trained from others must not be resumed.
    """

    encoder: EncoderAssets
    pad_token: int
    classes: int
    train: TokenArrays
    val: TokenArrays
    digest: str


class Trial:
    """One configuration, trained once.

    ``history`` holds a report per finished epoch: ``epoch``, ``train_loss``, ``train_acc``,
    ``val_loss``, ``val_acc``, ``examples_per_second``, ``epoch_seconds``, ``physical_batch_size`` as it
    was at the epoch's end, ``step_curve``, rows of (optimizer step, loss, accuracy, learning rate), and,
    where it could be measured, ``noise_scale`` with its two terms.

    ``physical_batch_size`` starts as the configuration's and is halved where memory runs out. The
    target batch size, the steps and the learning rates stay what they are.
    """

    def __init__(self, config: TrialConfig, assets: TrialAssets, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.assets_digest = assets.digest
        self.physical_batch_size = config.physical_batch_size
        self.history: list[EpochReport] = []
        self.train = TokenTensors(assets.train, assets.pad_token, device)
        self.val = TokenTensors(assets.val, assets.pad_token, device)
        self.model = assets.encoder.build(assets.classes, config.head_dropout, config.seed).to(device)
        spec = OPTIMIZERS[config.optimizer]
        self.optimizer = getattr(torch.optim, spec.torch_name)(
            self.model.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            **spec.options,
        )
        steps = config.epochs * self.steps_per_epoch
        warmup_steps = round(config.warmup_ratio * steps)
        self.scheduler = LambdaLR(
            self.optimizer,
            lambda step: learning_rate_factor(config.scheduler, step, warmup_steps, steps),
        )
        self.engine = build_engine(
            config.engine, self.model, self.optimizer, config.precision, config.accumulation_steps
        )
        self._best_weights: Weights = {}

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return self.config.steps_per_epoch(len(self.train))

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.history)

    @property
    def is_finished(self) -> bool:
        """Whether every epoch has been run."""
        return self.epoch >= self.config.epochs

    def run_epoch(self) -> EpochReport:
        """Train on every example once, evaluate on the val split, and report.

        Raises NonFiniteLossError, naming the step, and DoesNotFitError where memory runs out although
        examples are taken one at a time, or within the optimizer's own step.
        """
        epoch, started = self.epoch + 1, time.perf_counter()
        steps, rates, noise = self._train(epoch)
        training_seconds = time.perf_counter() - started
        validation = evaluate(self.model, self.val, self.config.precision)
        report = {
            "epoch": epoch,
            **_totals(steps),
            **noise_metrics(noise),
            "val_loss": validation.loss,
            "val_acc": validation.accuracy,
            "examples_per_second": len(self.train) / training_seconds,
            "epoch_seconds": time.perf_counter() - started,
            "physical_batch_size": self.physical_batch_size,
            "step_curve": _curve(steps, rates, first_step=self.epoch * self.steps_per_epoch + 1),
        }
        if not math.isfinite(validation.loss):
            raise NonFiniteLossError(f"val_loss is {validation.loss} after epoch {epoch}")
        self.history.append(report)
        if best_epoch(self.history) == epoch:
            self._best_weights = self._weights()
        return report

    def save(self, folder: Path) -> None:
        """Write the whole state into ``folder``."""
        is_best = best_epoch(self.history) == self.epoch
        Checkpoint(
            trial_hash=self.config.trial_hash,
            assets_digest=self.assets_digest,
            history=self.history,
            weights=self._weights(),
            best_weights=None if is_best else self._best_weights,
            optimizer=self.optimizer.state_dict(),
            scheduler=self.scheduler.state_dict(),
        ).save(folder)

    def restore(self, folder: Path) -> None:
        """Go on from a saved state; raises CorruptCheckpointError, also where it is another trial's.

        A physical batch size that was halved stays so; one that was configured smaller since is kept.
        """
        checkpoint = Checkpoint.load(folder)
        check_origin(folder, self.config.trial_hash, self.assets_digest)
        self.history = checkpoint.history
        self.physical_batch_size = _smaller_size(self.config, self.history)
        self.model.load_state_dict(checkpoint.weights)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.scheduler.load_state_dict(checkpoint.scheduler)
        best = checkpoint.best_weights or checkpoint.weights
        # what was loaded is mapped from the file, which goes when newer checkpoints take its place
        self._best_weights = {name: value.clone() for name, value in best.items()}

    def _train(self, epoch: int) -> tuple[list[StepResult], list[float], list[NoiseSample]]:
        config = self.config
        windows = epoch_windows(len(self.train), config.target_batch_size, config.seed, epoch)
        self.model.train()
        results, rates, noise = [], [], []
        with torch.random.fork_rng(devices=_cuda_devices(self.device)):
            for number, window in enumerate(windows):
                result, samples = self._gradient(epoch, number, window)
                self._update()
                results.append(result)
                noise += samples
                rates.append(float(self.scheduler.get_last_lr()[0]))
                self.scheduler.step()
        _check_finite(results, first_step=self.epoch * self.steps_per_epoch + 1, epoch=epoch)
        return results, rates, noise

    def _gradient(self, epoch: int, number: int, window: Tensor) -> tuple[StepResult, list[NoiseSample]]:
        """Accumulate a window; where memory runs out, again from its start at half the physical size."""
        seed = derive_seed(self.config.seed, "dropout", epoch, number)
        measure = self.config.measures_noise(number)

        def attempt(physical: int) -> tuple[StepResult, list[NoiseSample]]:
            torch.manual_seed(seed)
            return self.accumulate(window, physical, measure)

        whole = min(self.physical_batch_size, len(window))
        found, fitting = shrink_to_fit(attempt, whole)
        if fitting < whole:
            self.physical_batch_size = fitting
        return found

    def accumulate(
        self, window: Tensor, physical: int, measure: bool
    ) -> tuple[StepResult, list[NoiseSample]]:
        """Accumulate the gradient of ``window``, indices of training examples, (n,) int64 on the CPU.

        Changes no weight. With ``measure`` the gradient's noise comes with it, where it can be measured.
        """
        groups, size = measured_cut(len(window), physical) if measure else (1, physical)
        if groups == 1:
            return self.engine.accumulate(list(self.train.batches(window, physical))), []
        parts = window.split(len(window) // groups)
        micro_batches = [batch for part in parts for batch in self.train.batches(part, size)]
        gradients = GradientGroups(self.model.parameters(), groups, len(micro_batches), len(window))
        result = self.engine.accumulate(micro_batches, gradients.after_backward)
        return result, [gradients.sample]

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

    def _weights(self) -> Weights:
        state = self.model.state_dict()
        return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in state.items()}


def best_epoch(history: Sequence[EpochReport]) -> int:
    """The epoch of the highest val_acc, the earliest on ties; 0 before the first."""
    if not history:
        return 0
    return max(history, key=lambda report: (report["val_acc"], -report["epoch"]))["epoch"]


def _smaller_size(config: TrialConfig, history: Sequence[EpochReport]) -> int:
    """The physical batch size to go on with; reports from before it was kept do not name theirs."""
    configured = config.physical_batch_size
    return min([configured, *(report.get("physical_batch_size", configured) for report in history[-1:])])


def _cuda_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _check_finite(steps: Sequence[StepResult], first_step: int, epoch: int) -> None:
    losses = torch.stack([step.loss_sum for step in steps])
    bad = torch.nonzero(~losses.isfinite())
    if len(bad):
        offset = int(bad[0])
        raise NonFiniteLossError(
            f"train_loss is {losses[offset].item()} at step {first_step + offset} (epoch {epoch}): "
            "the learning rate is probably too high"
        )


def _totals(steps: Sequence[StepResult]) -> dict[str, float]:
    loss, correct, examples = _columns(steps)
    return {
        "train_loss": float(loss.sum() / examples.sum()),
        "train_acc": float(correct.sum() / examples.sum()),
    }


def _curve(
    steps: Sequence[StepResult], rates: Sequence[float], first_step: int
) -> list[tuple[int, float, float, float]]:
    """Thin to at most CURVE_POINTS_PER_EPOCH rows: means over the examples of some steps, which the
    last of them stands for, and its learning rate."""
    width = math.ceil(len(steps) / CURVE_POINTS_PER_EPOCH)
    rows = []
    for start in range(0, len(steps), width):
        loss, correct, examples = _columns(steps[start : start + width])
        last = min(start + width, len(steps)) - 1
        total = float(examples.sum())
        means = float(loss.sum()) / total, float(correct.sum()) / total
        rows.append((first_step + last, *means, rates[last]))
    return rows


def _columns(steps: Sequence[StepResult]) -> tuple[Tensor, Tensor, Tensor]:
    """Loss sums, correct counts and example counts as float64, (steps,) each, on the CPU."""
    return (
        torch.stack([step.loss_sum for step in steps]).double().cpu(),
        torch.stack([step.correct for step in steps]).double().cpu(),
        torch.tensor([step.examples for step in steps], dtype=torch.float64),
    )

"""What the command says of a plan before anything is trained."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.table import Column, Table

from search_spaces import TrialConfig
from search_spaces.plan import Plan
from search_spaces.trial_config import epoch_text
from search_spaces.update import Update, half_life
from sweep.footprint import gigabytes
from sweep.plan import PlannedStudy

_NUMBERS = (
    "target\nbatch\nsize",
    "physical\nbatch\nsize",
    "learning\nrate",
    "steps",
    "epochs",
    "examples",
    "cost",
    "last\nwindow",
    "seed",
)


def plan_summary(planned: PlannedStudy) -> str:
    """The plan in a few lines."""
    plan, stages, footprint = planned.plan, planned.stages(), planned.footprint
    sizes, dataset, shared = plan.dataset.sizes, plan.dataset, plan.shared
    checkpoints = footprint.checkpoints(footprint.in_training(stages, {}, set()))
    models = footprint.models(footprint.kept(stages, {}, set()))
    budget, extent = plan.space.budget_line(), "; ".join(stage.extent for stage in stages)
    lines = [
        f"study {plan.study}: {plan.question}",
        f"data {dataset.source}: {sizes['train']:,} train, {sizes['val']:,} val, {sizes['test']:,} test",
        *(f"  {heading.lower()}: {text}" for heading, text in dataset.facts.items()),
        *(f"note: {warning}" for warning in dataset.warnings),
        *([budget] if budget else []),
        f"{extent}, {shared.engine} engine, {shared.precision}",
        f"disk: checkpoints {gigabytes(checkpoints)} at most, until their trial is "
        f"tested; models in MLflow {gigabytes(models)} at most",
    ]
    largest = max(plan.space.target_batch_sizes)
    if largest > sizes["train"]:
        lines.append(
            f"note: target batch size {largest} is more than the {sizes['train']:,} training examples: "
            "its windows are whole epochs"
        )
    if short := _short_last_windows(plan):
        lines.append(short)
    serving = sum(len(cells) > 1 for cells in plan.trials.values())
    if serving:
        lines.append(
            f"{serving} {'trials serve' if serving > 1 else 'trial serves'} several cells: at batch size "
            f"{shared.reference_batch_size} every scaling rule gives the same learning rate"
        )
    return "\n".join(lines)


def _short_last_windows(plan: Plan) -> str:
    """A note if the last step of every epoch has less than half of the target batch size."""
    train = plan.train_examples
    sizes = {c.target_batch_size: c for c in plan.configs.values() if c.target_batch_size <= train}
    last = {batch: config.last_window(train) for batch, config in sizes.items()}
    short = [f"{examples} of {batch}" for batch, examples in last.items() if 2 * examples < batch]
    if not short:
        return ""
    return f"note: the last window of every epoch is less than half full: {', '.join(short)} examples"


def plan_tables(plan: Plan) -> list[Table]:
    """The searched parameters, and the trials that are already known."""
    found = [_parameters_table(plan.space.parameters)] if plan.space.parameters else []
    return found + ([trials_table(plan), companions_table(plan)] if plan.cells else [])


def _parameters_table(parameters: Mapping[str, Any]) -> Table:
    table = Table("parameter", "values", title="search", title_justify="left")
    for name, parameter in parameters.items():
        table.add_row(name, str(parameter))
    return table


def trials_table(plan: Plan) -> Table:
    """A row per trial."""
    title = "trials; cost: examples as a multiple of those at the reference batch size"
    table = Table(Column("trial", no_wrap=True), "model", "rules served", title=title, title_justify="left")
    for column in _NUMBERS:
        table.add_column(column, justify="right")
    for trial_hash, cells in plan.trials.items():
        config, spent = cells[0], plan.spent(cells[0])
        numbers = (
            config.target_batch_size,
            config.physical_batch_size,
            f"{config.learning_rate:.3g}",
            f"{spent['steps']:,}",
            epoch_text(spent["epochs"]),
            f"{spent['examples']:,}",
            f"×{plan.cost_ratio(config):.3f}",
            config.last_window(plan.train_examples),
            config.seed,
        )
        rules = ", ".join(cell.scaling_rule for cell in cells)
        table.add_row(trial_hash, config.model_name, rules, *map(str, numbers))
    return table


def companions_table(plan: Plan) -> Table:
    """Settings beside the learning rate: a row per target batch size and group of rules that agree."""
    title = "beside the learning rate; half-life: when the optimizer has forgotten half"
    table = Table("target\nbatch\nsize", "rules", title=title, title_justify="left")
    for column in ("weight\ndecay", "warm-up", "β₁", "its half-life", "β₂", "its half-life", "ε"):
        table.add_column(column)
    rows: dict[tuple[int, Update], list[TrialConfig]] = {}
    for cell in (cell.config for cell in plan.cells):
        alike = replace(cell.update, learning_rate=0.0)
        rows.setdefault((cell.target_batch_size, alike), []).append(cell)
    for (batch, update), cells in rows.items():
        rules = "=".join(dict.fromkeys(cell.scaling_rule for cell in cells))
        row = [str(batch), rules, f"{update.weight_decay:g}", _warmup(plan, cells[0])]
        for beta in (update.beta1, update.beta2):
            window = min(batch, plan.train_examples)
            row += ["none", ""] if beta is None else [f"{beta:g}", _forgotten(half_life(beta), window)]
        table.add_row(*row, "none" if update.epsilon is None else f"{update.epsilon:g}")
    return table


def _warmup(plan: Plan, config: TrialConfig) -> str:
    """The warm-up in steps, in examples and as a share of the budget."""
    steps = config.warmup_steps(plan.train_examples)
    if not steps:
        return "none"
    examples = config.examples_seen(steps, plan.train_examples)
    share = steps / config.total_steps(plan.train_examples)
    return f"{steps:,} steps, {examples:,} examples, {share:.1%}"


def _forgotten(steps: float, window: int) -> str:
    return f"{steps:,.1f} steps, {steps * window:,.0f} examples"

"""What the command says of a plan before anything is trained."""

from dataclasses import replace

from rich.table import Column, Table

from search_spaces import SearchSpace, TrialConfig
from search_spaces.trial_config import epoch_text
from search_spaces.update import Update, half_life
from sweep.hardware import bf16_available
from sweep.options import SweepOptions
from sweep.plan import Plan, make_plan
from sweep.terminal import say, show
from tracking import check_study_name

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


def plan_summary(plan: Plan) -> str:
    """The plan in a few lines."""
    sizes, dataset, shared = plan.splits.sizes(), plan.dataset, plan.shared
    checkpoints, models = plan.checkpoint_bytes(plan.in_training), plan.model_bytes(plan.kept)
    lines = [
        f"study {plan.study}: {plan.space.question}",
        f"data {dataset.source}: {sizes['train']:,} train, {sizes['val']:,} val, {sizes['test']:,} test",
        *(f"  {heading.lower()}: {text}" for heading, text in dataset.facts.items()),
        *(f"note: {warning}" for warning in dataset.warnings),
        *_budget(plan),
        f"{_extent(plan)}, {shared.engine} engine, {shared.precision}",
        f"disk: checkpoints {gigabytes(checkpoints)} at most, until their trial is "
        f"tested; models in MLflow {gigabytes(models)} at most",
    ]
    largest = max(plan.target_batch_sizes)
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


def _extent(plan: Plan) -> str:
    space = plan.space
    if not isinstance(space, SearchSpace):
        seeds, control = len(space.seeds), space.control_seeds or 0
        further = f" ({control} seeds of a control cell, {seeds} of any other)" if control > seeds else ""
        return f"{len(plan.cells)} cells, {len(plan.trials)} unique trials{further}"
    return (
        f"{space.trials} trials in generations of {space.generation_size}, sampler {space.sampler}, "
        f"stopping {space.stopping}; the best is trained again with {space.confirm_seeds} seeds and tested"
    )


def _budget(plan: Plan) -> list[str]:
    config, space = plan.shared, plan.space
    if isinstance(space, SearchSpace):
        return []
    epochs = f"{config.epochs}"
    if space.budget == "steps":
        epochs += f" at target batch size {config.reference_batch_size}, all with as many steps"
    return [f"equal {space.budget}: epochs {epochs}; evaluations {config.evaluation_count}"]


def _short_last_windows(plan: Plan) -> str:
    """A note where the last step of every epoch has less than half of the target batch size."""
    train = plan.train_examples
    last = {c.target_batch_size: c.last_window(train) for c in plan.cells if c.target_batch_size <= train}
    short = [f"{examples} of {batch}" for batch, examples in last.items() if 2 * examples < batch]
    if not short:
        return ""
    return f"note: the last window of every epoch is less than half full: {', '.join(short)} examples"


def plan_table(plan: Plan) -> Table:
    """A row per trial; of a search, a row per parameter."""
    if isinstance(plan.space, SearchSpace):
        table = Table("parameter", "values", title="search", title_justify="left")
        for name, parameter in plan.space.parameters.items():
            table.add_row(name, str(parameter))
        return table
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
    """A row per target batch size, and rules that differ there, of settings beside the learning rate."""
    title = "beside the learning rate; half-life: when the optimizer has forgotten half"
    table = Table("target\nbatch\nsize", "rules", title=title, title_justify="left")
    for column in ("weight\ndecay", "warm-up", "β₁", "its half-life", "β₂", "its half-life", "ε"):
        table.add_column(column)
    rows: dict[tuple[int, Update], list[TrialConfig]] = {}
    for cell in plan.cells:
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
    """In steps, in examples and as a share of the budget."""
    steps = config.warmup_steps(plan.train_examples)
    if not steps:
        return "none"
    examples = config.examples_seen(steps, plan.train_examples)
    share = steps / config.total_steps(plan.train_examples)
    return f"{steps:,} steps, {examples:,} examples, {share:.1%}"


def _forgotten(steps: float, window: int) -> str:
    return f"{steps:,.1f} steps, {steps * window:,.0f} examples"


def show_plan(options: SweepOptions) -> Plan:
    """Print what the command would do."""
    check_study_name(options.study)
    plan = make_plan(options, bf16_available(options))
    say(plan_summary(plan))
    show(plan_table(plan))
    if plan.cells:
        show(companions_table(plan))
    return plan


def gigabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"

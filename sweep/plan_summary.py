"""What the command says of a plan before anything is trained."""

from rich.table import Column, Table
from rich.text import Text

from errors import printable
from search_spaces import SearchSpace
from search_spaces.trial_config import epoch_text
from sweep.hardware import bf16_available
from sweep.options import SweepOptions
from sweep.plan import Plan, make_plan
from sweep.terminal import console, say
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
        f"data {dataset.source}: {sizes['train']:,} train, {sizes['val']:,} val, "
        f"{sizes['test']:,} test; {dataset.duplicates_dropped:,} exact duplicates dropped; "
        f"classes {', '.join(dataset.label_names)}",
        *_budget(plan),
        f"{_extent(plan)}, {shared.engine} engine, {shared.precision}",
        f"disk: checkpoints {gigabytes(checkpoints)} at most, until their trial is "
        f"tested; models in MLflow {gigabytes(models)} at most",
        *plan.notes,
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
    return "\n".join(map(printable, lines))


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
    return f"note: the last window of every epoch is less than half of one: {', '.join(short)} examples"


def plan_table(plan: Plan) -> Table:
    """A row per trial; of a search, a row per parameter."""
    if isinstance(plan.space, SearchSpace):
        table = Table("parameter", "values", title="search", title_justify="left")
        for name, parameter in plan.space.parameters.items():
            table.add_row(name, Text(printable(str(parameter))))
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
        table.add_row(trial_hash, Text(printable(config.model_name)), rules, *map(str, numbers))
    return table


def show_plan(options: SweepOptions) -> None:
    """Print what the command would do."""
    check_study_name(options.study)
    plan = make_plan(options, bf16_available(options))
    say(plan_summary(plan))
    console.print(plan_table(plan))


def gigabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"

"""The flags of every command, as argparse parsers; importing them imports nothing heavy."""

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from errors import UserError

USAGE_ERROR = 2  # exit code

EPILOG = """\
other commands:
  tune_main.py report --name STUDY    rebuild a study's tables from MLflow alone
  tune_main.py analyze --name STUDY   look inside its models: attention, errors
  tune_main.py verify [--models …]    prove on this machine that accumulation is exact
"""


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line with a suggestion, not a page of usage."""

    def __init__(self, command: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"tune_main.py {command}".strip(),
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Exit 2 with the message alone."""
        print(f"error: {UserError(message)} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(USAGE_ERROR)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse everything; what is left over is an error that suggests near misses."""
        known, rest = self.parse_known_args(argv)
        if rest:
            near = difflib.get_close_matches(rest[0][:100], list(self._option_string_actions), n=1)
            self.error(f"unknown argument {rest[0]}" + (f": did you mean {near[0]}?" if near else ""))
        return known


# flags that are TrialConfig fields of the same name, and flags that are SweepOptions
SETTINGS = (
    "dataset text_column label_column keep_duplicates base_lr epochs max_length train_size eval_size engine"
).split()
OPTIONS = (
    "space demo models target_batch_sizes scaling_rules seeds physical_batch_size precision "
    "assignments name tracking_uri storage_path results_path ray_address gpus_per_trial "
    "cpus_per_trial max_concurrent max_failures store_patience fresh"
).split()


def sweep_parser() -> Parser:
    """The flags of a sweep."""
    parser = Parser("", "Run a batch-size x learning-rate-scaling study as a Ray Tune sweep.", EPILOG)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--space", help="the question to answer (see --list-spaces)")
    what.add_argument("--list-spaces", action="store_true", help="list the questions and exit")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, train nothing")
    parser.add_argument(
        "--fresh",
        action="store_true",
        default=None,
        help="train everything anew; without it, what an earlier run has finished is kept",
    )
    parser.add_argument(
        "--demo",
        action="store_true",
        help="defaults for a laptop: generated reviews, tiny encoders",
    )

    cells = parser.add_argument_group("cells (defaults come from the space)")
    cells.add_argument("--models", nargs="+", metavar="MODEL", help="short names, hub ids or folders")
    cells.add_argument("--target-batch-sizes", nargs="+", type=int, metavar="N")
    cells.add_argument("--scaling-rules", nargs="+", metavar="RULE", help="fixed, sqrt, linear")
    cells.add_argument("--seed", dest="seeds", nargs="+", type=int, metavar="N", help="default 42")

    data = parser.add_argument_group("data")
    data.add_argument("--dataset", help="a hub id, a folder, or a CSV, JSON or Parquet file")
    data.add_argument("--text-column")
    data.add_argument("--label-column")
    data.add_argument("--keep-duplicates", action="store_true", default=None)
    data.add_argument("--max-length", type=int, metavar="TOKENS", help="default 128")
    data.add_argument("--train-size", type=int, metavar="N", help="train on only N examples")
    data.add_argument("--eval-size", type=int, metavar="N", help="val and test on only N each")

    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=int)
    training.add_argument("--base-lr", type=float, help="at the reference batch size (default 5e-5)")
    training.add_argument(
        "--physical-batch-size", metavar="N|auto", help="per pass; does not change what is learned"
    )
    training.add_argument("--engine", help="torch (default) or accelerate")
    training.add_argument("--precision", help="auto (default), fp32 or bf16")
    training.add_argument(
        "--set",
        dest="assignments",
        action="append",
        metavar="KEY=VALUE",
        help="any other TrialConfig field",
    )

    where = parser.add_argument_group("where it runs and what it leaves")
    where.add_argument("--name", help="the study's name (default: the space's)")
    where.add_argument("--gpus-per-trial", type=float, metavar="N", help="fractions allowed")
    where.add_argument("--cpus-per-trial", type=float, metavar="N")
    where.add_argument("--max-concurrent", type=int, metavar="N", help="trials at once")
    where.add_argument(
        "--max-failures", type=int, metavar="N", help="attempts after a trial's first failure (default 2)"
    )
    where.add_argument(
        "--store-patience", type=float, metavar="SECONDS", help="for an MLflow that is away (default 600)"
    )
    where.add_argument("--ray-address", help="join this Ray cluster instead of starting one")
    where.add_argument("--storage-path", help="folder for checkpoints (default ray_results)")
    _tracking_arguments(where)
    return parser


def report_parser() -> Parser:
    """The flags of ``report``."""
    parser = Parser("report", "Rebuild a study's tables from MLflow alone.")
    parser.add_argument("--name", required=True, help="the study")
    _tracking_arguments(parser)
    parser.set_defaults(results_path="results")
    return parser


def analyze_parser() -> Parser:
    """The flags of ``analyze``."""
    parser = Parser("analyze", "Attention maps and errors of a study's best-epoch models, on the CPU.")
    parser.add_argument("--name", required=True, help="the study")
    parser.add_argument(
        "--text",
        dest="texts",
        action="append",
        default=[],
        metavar="SENTENCE",
        help="show the attention in this sentence, not in chosen test sentences; may be repeated",
    )
    parser.add_argument("--rule", help="the scaling rule that pictures show (default fixed)")
    parser.add_argument("--layer", type=int, metavar="N", help="from 1 (default: the last)")
    parser.add_argument("--head", type=int, metavar="N", help="from 1 (default: the mean over heads)")
    _tracking_arguments(parser)
    parser.set_defaults(results_path="results")
    return parser


def verify_parser() -> Parser:
    """The flags of ``verify``."""
    parser = Parser("verify", "Compare accumulated gradients with whole-window gradients in float64.")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="short names or folders")
    return parser


def _tracking_arguments(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--tracking-uri", help="MLflow (default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)"
    )
    parser.add_argument("--results-path", help="folder for reports (default results)")


PARSERS: dict[str, Callable[[], Parser]] = {
    "sweep": sweep_parser,
    "report": report_parser,
    "analyze": analyze_parser,
    "verify": verify_parser,
}

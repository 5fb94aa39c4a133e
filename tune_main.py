"""The command line: ``tune_main.py --space NAME`` runs a study, see --help for the rest."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from addresses import clean_command_line, trust_artifact_hosts
from errors import StoppedError, UserError, is_mendable
from sweep.command_line import USAGE_ERROR, Options
from sweep.options import (
    AnalyzeOptions,
    JobOptions,
    ReportOptions,
    SubmitOptions,
    SweepOptions,
    VerifyOptions,
    list_spaces,
    parse_options,
)
from sweep.resolve import resolve_space
from sweep.terminal import complain, hear_signals, say, show, working

FAILED, INTERRUPTED = 1, 130


def main(argv: Sequence[str]) -> int:
    """Run a command; returns the exit code."""
    command, rest = (argv[0], argv[1:]) if argv and argv[0] in COMMANDS else ("sweep", argv)
    unless = ", without --fresh if it has said that it starts anew" if "--fresh" in rest else ""
    _print_anything()
    try:
        kind, run = COMMANDS[command]
        options = parse_options(kind, rest, command)
        trust_artifact_hosts(getattr(options, "artifact_host", ()))
        _quiet_libraries()
        return run(options)
    except KeyboardInterrupt:
        complain(f"stopped: run the same command again to continue{unless}")
        return INTERRUPTED
    except (UserError, StoppedError, OSError) as error:
        if isinstance(error, OSError) and not is_mendable(error):
            raise  # a defect of this program: its traceback is needed
        is_usage = isinstance(error, UserError)
        complain(f"error: {error}{'' if is_usage else unless}")
        return USAGE_ERROR if is_usage else FAILED


def run_sweep(options: SweepOptions) -> int:
    """Run a study and print its tables; exit code 1 if a trial failed."""
    if options.list_spaces:
        say(list_spaces())
        return 0
    resolve_space(options, bf16_available=False)  # typing errors, before the slow imports
    if options.dry_run:
        return _show_plan(options)
    from sweep.study import run_study

    outcome = run_study(options, partial(_forecast, options))
    _print_report(options.tracking_uri, outcome.study, options.results_path)
    for name, reason in outcome.failures.items():
        complain(f"failed: {name}: {reason}")
    return FAILED if outcome.failures else 0


def _show_plan(options: SweepOptions) -> int:
    """The plan, what the study will be able to tell, and how long it will take."""
    from reports.earlier import Earlier
    from reports.forecast import Durations, power_lines, time_line
    from sweep.calibration import calibrate
    from sweep.hardware import bf16_available
    from sweep.plan import make_plan
    from sweep.plan_summary import plan_summary, plan_tables

    planned = make_plan(options, bf16_available(options))
    say(plan_summary(planned))
    for table in plan_tables(plan := planned.plan):
        show(table)
    earlier = Earlier(options.tracking_uri, say=say)
    chance = _chance(plan, options, earlier)
    if options.calibrate:
        durations = Durations(calibrate(planned, options), "by a few steps timed here")
    else:
        durations = _durations(plan, options, earlier)
    for line in (*power_lines(plan, chance), time_line(plan, durations)):
        say(line)
    return 0


def _forecast(options: SweepOptions, plan: Any) -> Any:
    """What to expect of this study, from other studies."""
    from reports.earlier import Earlier
    from reports.forecast import Forecast, forecast

    if not plan.cells:  # nothing is forecast, so the store need not be read
        return Forecast()
    others = Earlier(options.tracking_uri, leave_out=plan.study, say=say)
    chance, durations = _chance(plan, options, others), _durations(plan, options, others)
    return forecast(plan, chance, durations)


def _chance(plan: Any, options: SweepOptions, earlier: Any) -> Any:
    """How far trainings vary by chance: as assumed, else as in earlier studies."""
    from reports.forecast import assumed

    return assumed(options.assume_seed_sd, options.assume_disagreement).or_else(earlier.chance(plan))


def _durations(plan: Any, options: SweepOptions, earlier: Any) -> Any:
    """How long trials take, as in earlier studies."""
    from sweep.hardware import ran_as_here

    return earlier.durations(plan, lambda tags: ran_as_here(options, tags))


def run_report(options: ReportOptions) -> int:
    """Rebuild the tables of a study."""
    _print_report(options.tracking_uri, options.name, options.results_path, options.target_val_acc)
    return 0


def run_analyze(options: AnalyzeOptions) -> int:
    """Look inside the best-epoch models of a study."""
    from reports import write_report
    from reports.inside import View, write_inside

    place = (options.tracking_uri, options.name, options.results_path)
    view = View(options.texts, options.rule, options.layer, options.head)
    with working("looking inside the models") as now:
        section, folder = write_inside(*place, view, now)
    page = write_report(*place, say=say).page
    for line in (*section.prose, f"pictures       {folder}", f"report         {page}"):
        say(line)
    return 0


def run_job(action: str, options: SubmitOptions | JobOptions) -> int:
    """Submit, show, follow or stop a study as a job on a Ray cluster; returns the job's exit code."""
    from sweep import jobs

    return getattr(jobs, action)(options)


def run_verify(options: VerifyOptions) -> int:
    """Check the arithmetic; exit code 1 if a gradient is wrong."""
    from sweep.verify import verify

    return 0 if verify(options.models) else FAILED


def _print_report(
    tracking_uri: str, study: str, results_path: str, target_val_acc: float | None = None
) -> None:
    """Write the report and show its tables and its verdict."""
    from reports import terminal_table, write_report

    report = write_report(tracking_uri, study, results_path, target_val_acc, say)
    for table in report.results:
        show(terminal_table(table))
    outside = [f"outside plan   {report.outside}"] if report.outside else []
    for line in (*report.headline, *outside, f"report         {report.page}"):
        say(line)
    for name, address in report.pages.items():
        say(f"{name:<14} {address}")


def _quiet_libraries() -> None:
    """Keep libraries from printing between the user and the table; call before they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")  # what it logs it also raises
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")


def _print_anything() -> None:
    """A terminal or a log that is not in UTF-8 gets escapes for the letters that it lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


COMMANDS: dict[str, tuple[type[Options], Callable[[Any], int]]] = {
    "sweep": (SweepOptions, run_sweep),
    "submit": (SubmitOptions, partial(run_job, "submit")),
    "status": (JobOptions, partial(run_job, "status")),
    "logs": (JobOptions, partial(run_job, "logs")),
    "stop": (JobOptions, partial(run_job, "stop")),
    "report": (ReportOptions, run_report),
    "analyze": (AnalyzeOptions, run_analyze),
    "verify": (VerifyOptions, run_verify),
}

if __name__ == "__main__":
    clean_command_line()
    hear_signals()
    exit_code = main(sys.argv[1:])
    with contextlib.suppress(OSError):  # a pipe whose reader has gone
        sys.stdout.flush()
        sys.stderr.flush()
    # nothing is left to be done, and taking the libraries apart object by object takes seconds
    os._exit(exit_code)

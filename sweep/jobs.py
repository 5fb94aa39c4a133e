"""A study as a Ray job: submitted to a cluster, followed, stopped."""

import asyncio
import contextlib
import os
import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from rich.table import Table

from errors import UserError, first_line
from sweep.cluster import NOT_FOR_WORKERS, PROJECT
from sweep.options import JobOptions, SubmitOptions, SweepOptions
from sweep.terminal import console, say

_STUDY = "study"  # the key of a job's metadata
_CARRIED = ("MLFLOW_", "HF_", "AWS_")  # variables that a study may need where it runs
_EXIT_CODES = {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: 130}


def submit(options: SubmitOptions) -> int:
    """Submit the study and follow its lines to its end; returns its exit code.

    A study that was stopped or killed goes on where it was. Raises UserError for what cannot be submitted.
    """
    for name in ("storage_path", "results_path"):
        if not Path(getattr(options, name)).is_absolute():
            raise UserError(
                f"--{name.replace('_', '-')} must be an absolute path that all machines of the cluster "
                "share: a job runs in a folder of its own, which is thrown away"
            )
    words = SweepOptions(**options.model_dump(include=options.model_fields_set - {"address"})).words()
    command = ["python", "tune_main.py", *words, "--ray-address", "auto"]
    with _told(options.address):
        client = JobSubmissionClient(options.address)
        job = client.submit_job(
            entrypoint=shlex.join(command),
            metadata={_STUDY: options.study},
            runtime_env={
                "working_dir": str(PROJECT),
                "excludes": NOT_FOR_WORKERS,
                "env_vars": {key: value for key, value in os.environ.items() if key.startswith(_CARRIED)},
            },
        )
        say(f"study {options.study} runs as job {job}")
        return _follow(client, job, f"--address {options.address} --name {options.study}")


def status(options: JobOptions) -> int:
    """Show the jobs of a study, or of all, the newest first."""
    with _told(options.address):
        jobs = _jobs(JobSubmissionClient(options.address), options.name)
    table = Table("study", "status", "started", "job", "message")
    for job in jobs:
        started = datetime.fromtimestamp((job.start_time or 0) / 1000)
        study = (job.metadata or {})[_STUDY]
        table.add_row(study, str(job.status), f"{started:%Y-%m-%d %H:%M}", job.submission_id, job.message)
    console.print(table)
    return 0


def logs(options: JobOptions) -> int:
    """Show what the newest job of a study has said, and follow it to its end; returns its exit code."""
    with _told(options.address):
        client = JobSubmissionClient(options.address)
        job = _newest(client, options.name)
        return _follow(client, str(job.submission_id), f"--address {options.address} --name {options.name}")


def stop(options: JobOptions) -> int:
    """Stop the newest job of a study; submitted again, the study goes on."""
    with _told(options.address):
        client = JobSubmissionClient(options.address)
        job = _newest(client, options.name)
        if not client.stop_job(str(job.submission_id)):
            say(f"study {options.name} does not run: its job is {job.status}")
            return 0
    say(f"stopping {options.name}: submit it again to continue")
    return 0


def _follow(client: JobSubmissionClient, job: str, again: str) -> int:
    async def print_lines() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    try:
        asyncio.run(print_lines())
    except KeyboardInterrupt:
        say(f"the study goes on; follow it with: tune_main.py logs {again}, end it with: tune_main.py stop")
        raise
    ended = client.get_job_info(job)
    if ended.status == JobStatus.FAILED and ended.driver_exit_code is None:
        say(f"the job failed: {ended.message}")
    return _EXIT_CODES.get(ended.status, ended.driver_exit_code or 1)


def _jobs(client: JobSubmissionClient, study: str | None) -> list[JobDetails]:
    """The jobs that are studies, the newest first."""
    ours = [job for job in client.list_jobs() if (job.metadata or {}).get(_STUDY)]
    if study:
        ours = [job for job in ours if (job.metadata or {})[_STUDY] == study]
    return sorted(ours, key=lambda job: job.start_time or 0, reverse=True)


def _newest(client: JobSubmissionClient, study: str | None) -> JobDetails:
    jobs = _jobs(client, study)
    if not study or not jobs:
        names = sorted({(job.metadata or {})[_STUDY] for job in _jobs(client, None)})
        raise UserError(
            f"no job of study '{study or ''}': give --name, one of {', '.join(names) or 'none'}"
        )
    return jobs[0]


@contextlib.contextmanager
def _told(address: str) -> Iterator[None]:
    """What Ray's job server refuses is one line."""
    try:
        yield
    except (ConnectionError, RuntimeError) as error:
        raise UserError(f"the job server at {address}: {first_line(error)}") from error

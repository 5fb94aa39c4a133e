"""A study as a Ray job: submitted to a cluster, followed, stopped."""

import asyncio
import contextlib
import logging
import os
import shlex
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from rich.table import Table

from addresses import has_credentials, with_credentials
from errors import UserError, first_line, printable
from sweep.cluster import NOT_FOR_WORKERS, PROJECT
from sweep.command_line import flag_of
from sweep.options import JobOptions, SubmitOptions, SweepOptions
from sweep.resolve import resolve_space
from sweep.terminal import pass_on, say, show
from tracking import check_study_name, sqlite_file

_STUDY = "study"  # the key of a job's metadata
_CREDENTIALS = (  # of MLflow, its artifacts and the hub; no paths, which mean nothing on the cluster
    "MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD MLFLOW_TRACKING_TOKEN MLFLOW_S3_ENDPOINT_URL "
    "AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_DEFAULT_REGION HF_TOKEN"
).split()
_STOPPED = 130  # exit code, as after Ctrl-C
_EXIT_CODES = {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: _STOPPED}


def submit(options: SubmitOptions) -> int:
    """Submit the study and print its lines until it ends; returns its exit code.

    A study that was stopped or killed continues. Raises UserError for what cannot run on the cluster.
    """
    study = _study_there(options)
    with _client(options.address) as client, project_with(study) as (folder, words):
        job = client.submit_job(
            entrypoint=shlex.join(["python", "tune_main.py", *words]),
            metadata={_STUDY: study.study},
            runtime_env={
                "working_dir": folder,
                "excludes": NOT_FOR_WORKERS,
                "env_vars": {name: os.environ[name] for name in _CREDENTIALS if name in os.environ},
            },
        )
        say(f"study {study.study} runs as job {job}")
        return _follow(client, job, options.address, study.study)


def status(options: JobOptions) -> int:
    """Show the jobs of a study, or of all, the newest first."""
    with _client(options.address) as client:
        jobs = _jobs(client, options.name)
    table = Table("study", "status", "started", "job", "message")
    for job in jobs:
        started = f"{datetime.fromtimestamp((job.start_time or 0) / 1000):%Y-%m-%d %H:%M}"
        message = (job.message or "").strip().partition("\n")[0]
        cells = (_study_of(job), job.status, started, job.submission_id, message)
        table.add_row(*(printable(str(cell)) for cell in cells))
    show(table)
    return 0


def logs(options: JobOptions) -> int:
    """Show what a study's job says, and follow it to its end; returns its exit code."""
    with _client(options.address) as client:
        job = _current(client, options.name)
        return _follow(client, str(job.submission_id), options.address, _study_of(job))


def stop(options: JobOptions) -> int:
    """Stop a study's job; the study continues when it is submitted again."""
    with _client(options.address) as client:
        job = _current(client, options.name)
        if job.status.is_terminal():
            say(f"study {options.name} does not run: its last job is {job.status}")
        else:
            client.stop_job(str(job.submission_id))
            say(f"stopping {options.name}: submit it again to continue")
    return 0


def _study_there(options: SubmitOptions) -> SweepOptions:
    """The study's options on the cluster; UserError for paths and addresses that mean nothing there."""
    given = options.model_dump(include=options.model_fields_set - {"address"})
    given |= {"ray_address": "auto", "tracking_uri": options.tracking_uri}
    study = SweepOptions(**given)
    check_study_name(study.study)
    models = resolve_space(study, bf16_available=False).models
    _check_no_credentials(study)
    for flag, path in (("--storage-path", study.storage_path), ("--results-path", study.results_path)):
        if not Path(path).is_absolute():
            raise UserError(
                f"{flag} must be an absolute path that all machines of the cluster share: "
                "a job runs in a folder of its own, which is thrown away"
            )
    for path in (study.dataset or "", *models):
        if path and Path(path).exists() and not Path(path).is_absolute():
            raise UserError(f"{path} is here and not on the cluster: give an absolute path that it has")
    if sqlite_file(study.tracking_uri):
        raise UserError("--tracking-uri must be a server that the cluster reaches: give http://HOST:PORT")
    return study


def _check_no_credentials(study: SweepOptions) -> None:
    """Raise UserError for a password in the study's command line, which Ray keeps and shows."""
    for name in study.model_fields_set:
        value = getattr(study, name)
        if isinstance(value, str) and has_credentials(value):
            raise UserError(
                f"{flag_of(SweepOptions, name)} {value} holds a password, which Ray would show to all who "
                "have its token: leave it out, and set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, which submit hands to the study"
            )


@contextlib.contextmanager
def project_with(study: SweepOptions) -> Iterator[tuple[str, list[str]]]:
    """The folder sent to the cluster, with a user's own space, and the study's command line there."""
    if not study.space.endswith(".py"):
        yield str(PROJECT), study.words()
        return
    with TemporaryDirectory() as folder:
        ignored = shutil.ignore_patterns(*NOT_FOR_WORKERS)
        shutil.copytree(PROJECT, folder, ignore=ignored, dirs_exist_ok=True)
        there = Path("own_space", Path(study.space).name)
        (folder / there).parent.mkdir()
        shutil.copyfile(study.space, folder / there)
        yield folder, study.model_copy(update={"space": str(there)}).words()


def _follow(client: JobSubmissionClient, job: str, address: str, study: str) -> int:
    async def print_lines() -> None:
        async for lines in client.tail_job_logs(job):
            pass_on(lines)

    where = f"--address {address} --name {study}"
    try:
        asyncio.run(print_lines())
    except KeyboardInterrupt:
        say(f"the study goes on: follow it with `logs {where}`, end it with `stop {where}`")
        return _STOPPED
    ended = client.get_job_info(job)
    if not ended.status.is_terminal():
        raise UserError(f"the job server has stopped telling; the study goes on: give `logs {where}`")
    if ended.status == JobStatus.FAILED and ended.driver_exit_code is None:
        pass_on(f"the job failed: {ended.message}\n")
    return _EXIT_CODES.get(ended.status, ended.driver_exit_code or 1)


def _jobs(client: JobSubmissionClient, study: str | None) -> list[JobDetails]:
    """The jobs that are studies, or one study's, the newest first."""
    ours = [job for job in client.list_jobs() if _study_of(job) and study in {None, _study_of(job)}]
    return sorted(ours, key=lambda job: job.start_time or 0, reverse=True)


def _current(client: JobSubmissionClient, study: str | None) -> JobDetails:
    """The study's running job, else its newest: a refused job may be newer than the running one."""
    jobs = _jobs(client, None)
    own = sorted((job for job in jobs if _study_of(job) == study), key=lambda job: job.status.is_terminal())
    if not own:
        names = ", ".join(sorted(set(map(_study_of, jobs)))) or "none"
        raise UserError(f"there is no job of study '{study or ''}': give --name, one of {names}")
    return own[0]


def _study_of(job: JobDetails) -> str:
    return printable((job.metadata or {}).get(_STUDY, ""))


@contextlib.contextmanager
def _client(address: str) -> Iterator[JobSubmissionClient]:
    """Ray's job server at ``address``; UserError, one line, if it refuses or is not there."""
    if not address.startswith(("http://", "https://")):
        raise UserError(f"--address {address} is no address of a job server: give http://HOST:8265")
    os.environ.pop("RAY_ADDRESS", None)  # Ray would prefer it to ``address``
    logging.getLogger("ray").setLevel(logging.ERROR)  # it names every file that it does not upload
    try:
        yield JobSubmissionClient(with_credentials(address))
    except (OSError, RuntimeError, ValueError, RayError, aiohttp.ClientError) as error:
        if isinstance(error, UserError):
            raise
        token = ": give its token in RAY_AUTH_TOKEN" if "authenticat" in str(error).lower() else ""
        raise UserError(f"the job server at {address}: {first_line(error)}{token}") from error

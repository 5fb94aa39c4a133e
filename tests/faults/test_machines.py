"""A study on several machines: one is lost in mid-trial, by power or by cable."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults import bench, processes
from tests.faults.bench import Moment
from tests.faults.clusters import loopback_places, ray_cluster
from tests.faults.networks import namespaces_missing
from tests.faults.rounds import outcome
from tests.faults.servers import postgres_missing
from tests.faults.study import ROOT, STUDY, Command, differences, facts

pytestmark = pytest.mark.slow
needs_postgres = pytest.mark.skipif(bool(postgres_missing()), reason=postgres_missing())
needs_namespaces = pytest.mark.skipif(bool(namespaces_missing()), reason=namespaces_missing())
NETWORK = pytest.param(True, marks=[pytest.mark.campaign, needs_namespaces])
BOTH_TRAIN = Moment("epoch 1/", 2, 0.1)  # one trial on each machine


@needs_postgres
@pytest.mark.parametrize("over_network", [False, NETWORK], ids=["power", "cable"])
def test_the_trials_of_a_lost_machine_go_on_elsewhere(uninterrupted, tmp_path, over_network):
    with bench.machines(tmp_path, over_network) as where:
        where.command.start()
        assert BOTH_TRAIN.come(where.command)
        where.network.cut(2) if over_network else where.cluster.kill_node(2)
        assert outcome(where, uninterrupted) == []


def submit(where, tmp_path):
    """Submit the command as a job; a node is alive some seconds before its agent takes jobs."""
    places = ["--storage-path", str(tmp_path / "storage"), "--results-path", str(tmp_path / "results")]
    command = [*STUDY, "--ray-address", "auto", "--tracking-uri", where.tracking_uri, *places]
    ray = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", where.cluster.dashboard]
    ray += ["--working-dir", str(ROOT), "--runtime-env-json"]
    ray += [json.dumps({"excludes": [".git", ".venv", "mlruns", "results", "ray_results"]})]
    environment = processes.clean_environment() | where.cluster.environment
    said = tmp_path / "job.log"

    def submitted():
        with said.open("w") as log:
            done = subprocess.run(
                [*ray, "--", sys.executable, "tune_main.py", *command],
                env=environment,
                stdout=log,
                stderr=log,
                timeout=400,
                check=False,
            )
        assert done.returncode == 0 or "No available agent" in said.read_text(), said.read_text()
        return done.returncode == 0

    processes.wait_until(submitted, 500, "a node that takes jobs")


def test_a_cluster_with_another_token_is_one_line(tmp_path):
    token = tmp_path / "token"
    token.write_text("0" * 64)
    with ray_cluster(loopback_places(1), head_cpus=1) as cluster:
        cluster.wait_for(1)
        environment = cluster.environment | {"RAY_AUTH_TOKEN_PATH": str(token)}
        command = Command(tmp_path / "driver", "--ray-address", cluster.address, environment=environment)
        assert command.run() == 2
        assert command.output().count(f"error: the Ray cluster at {cluster.address} cannot be reached") == 1
        assert "Traceback" not in command.output()


@needs_postgres
@pytest.mark.campaign
def test_submitted_as_a_ray_job(uninterrupted, tmp_path):
    with bench.machines(tmp_path, dashboard=True) as where:
        where.command.folder.mkdir(exist_ok=True)
        submit(where, tmp_path)
        assert not differences(uninterrupted, facts(where.tracking_uri, where.command.folder))


@pytest.mark.campaign
@pytest.mark.skipif(os.geteuid() != 0, reason="a mount of one's own needs root")
def test_a_storage_that_a_machine_does_not_share_is_refused(tmp_path):
    storage = tmp_path / "driver" / "ray_results"
    storage.mkdir(parents=True)
    hide = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', str(storage))
    head, blind = loopback_places(2)
    with ray_cluster([head, replace(blind, enter=hide)], head_cpus=1) as cluster:
        cluster.wait_for(2)
        command = Command(
            tmp_path / "driver", "--ray-address", cluster.address, environment=cluster.environment
        )
        assert command.run() == 2
        (error,) = [line for line in command.said().splitlines() if line.startswith("error: ")]
        assert f"is not the same folder on {blind.ip}" in error

"""A study on several machines: a node is lost in mid-trial, by power or by cable."""

import json
import os
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.faults import processes
from tests.faults.clusters import loopback_places, ray_cluster
from tests.faults.networks import namespaces_missing, network
from tests.faults.postgres import postgres, postgres_missing
from tests.faults.servers import mlflow_server
from tests.faults.study import Command

ROOT = Path(__file__).parents[2]
EPOCHS = 3
STUDY = (
    f"--space fixed_lr --name machines --demo --models bert-tiny --epochs {EPOCHS} --precision fp32 "
    "--target-batch-sizes 64 256 --train-size 640 --eval-size 60 --max-length 32"
).split()
TRIALS = 2

pytestmark = pytest.mark.skipif(bool(postgres_missing()), reason=postgres_missing())


class Driver:
    """The command, run where the head is, against one cluster and one tracking server."""

    def __init__(self, folder, cluster, server):
        self.folder = folder
        self.tracking_uri = server.uri
        self._where = ["--ray-address", cluster.address, "--tracking-uri", server.uri]
        self._enter, self._environment = cluster.enter(), cluster.environment

    def start(self, *more):
        quiet = {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
        command = [*self._enter, sys.executable, str(ROOT / "tune_main.py"), *STUDY, *self._where, *more]
        return processes.start(self.folder, command, self._environment | quiet)

    def run(self):
        return self.start().wait(timeout=300)

    def output(self):
        return (self.folder / "output.log").read_text()

    def follow(self, process, seconds):
        """Wait for the end, and print what the command says with the seconds at which it does."""
        started, shown = time.monotonic(), len(self.output())

        def ended():
            nonlocal shown
            is_over, said = process.poll() is not None, self.output()[shown:]
            shown += len(said)
            for line in said.splitlines():
                print(f"{time.monotonic() - started:6.1f} s  {line}")
            return is_over

        processes.wait_until(ended, seconds, "the command to end")
        return process.returncode

    def wait_for_epochs(self, process, count):
        def seen():
            assert process.poll() is None, self.output()
            return self.output().count("epoch 1/") >= count

        processes.wait_until(seen, 120, f"the first epoch of {count} trials")


@contextmanager
def bench(folder, places, host="127.0.0.1", **options):
    """A cluster, PostgreSQL, MLflow on it, and a driver for them; all start at the same time."""
    (folder / "driver").mkdir()
    with (
        ray_cluster(places, **options) as cluster,
        postgres() as database,
        mlflow_server(folder / "mlflow", database.uri, host) as server,
    ):
        server.wait_until_healthy()
        cluster.wait_for(len(places))
        driver = Driver(folder / "driver", cluster, server)
        try:
            yield cluster, driver, MlflowClient(server.uri)
        finally:
            processes.kill(driver.folder)


def check_study(store):
    """One finished run per trial, every epoch in it exactly once."""
    experiment = store.get_experiment_by_name("machines")
    runs = store.search_runs([experiment.experiment_id], "tags.trial_hash LIKE '%'")
    assert len(runs) == len({run.data.tags["trial_hash"] for run in runs}) == TRIALS
    for run in runs:
        assert run.info.status == "FINISHED"
        assert "test_acc" in run.data.metrics
        steps = Counter(m.step for m in store.get_metric_history(run.info.run_id, "val_acc"))
        assert steps == dict.fromkeys(range(1, EPOCHS + 1), 1)


def finish(driver, process, store):
    """The command ends by itself; where it gave trials up, running it again completes them."""
    code = driver.follow(process, 180)
    assert code in {0, 1}
    if code == 1:
        assert driver.run() == 0, driver.output()
    check_study(store)


def test_a_lost_node(tmp_path):
    with bench(tmp_path, loopback_places(3)) as (cluster, driver, store):
        process = driver.start()
        driver.wait_for_epochs(process, TRIALS)  # one on each worker
        cluster.kill_node(2)
        finish(driver, process, store)


@pytest.mark.campaign
def test_a_node_comes_back(tmp_path):
    with bench(tmp_path, loopback_places(3)) as (cluster, driver, store):
        cluster.kill_node(1)
        cluster.wait_for(2)
        cluster.start_node(1)
        cluster.wait_for(3)
        assert driver.run() == 0, driver.output()
        check_study(store)


@pytest.mark.campaign
@pytest.mark.skipif(bool(namespaces_missing()), reason=namespaces_missing())
@pytest.mark.parametrize("mended", [False, True], ids=["for-good", "and-mended"])
def test_a_cut_link(tmp_path, mended):
    with network(3) as net, bench(tmp_path, net.places, net.host) as (cluster, driver, store):
        process = driver.start()
        driver.wait_for_epochs(process, TRIALS)
        net.cut(2)
        started = time.monotonic()
        cluster.wait_for(2)
        print(f"the cut link was noticed after {time.monotonic() - started:.1f} s")
        if mended:
            net.mend(2)
        finish(driver, process, store)
        print("left on the cut node:", [p.name() for p in cluster.processes_of(2)])


def submit(driver, command, environment):
    """Submit until there is an agent to take the job: a node is alive some seconds before its agent."""
    deadline = time.monotonic() + 120
    while True:
        before = len(driver.output()) if (driver.folder / "output.log").exists() else 0
        code = processes.start(driver.folder, command, environment).wait(timeout=300)
        refused = "No available agent" in driver.output()[before:]
        if not refused or time.monotonic() > deadline:
            return code


@pytest.mark.campaign
def test_submitted_as_a_ray_job(tmp_path):
    with bench(tmp_path, loopback_places(3), dashboard=True) as (cluster, driver, store):
        shared = ["--storage-path", str(tmp_path / "storage"), "--results-path", str(tmp_path / "results")]
        command = [*STUDY, "--ray-address", "auto", "--tracking-uri", driver.tracking_uri, *shared]
        ray = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", cluster.dashboard]
        ray += ["--working-dir", str(ROOT), "--runtime-env-json"]
        ray += [json.dumps({"excludes": [".git", ".venv", "mlruns", "results", "ray_results"]})]
        ray += ["--", sys.executable, "tune_main.py", *command]
        assert submit(driver, ray, cluster.environment) == 0, driver.output()
        check_study(store)


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

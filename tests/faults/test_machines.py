"""A study on several machines: one is lost in mid-trial, by power or by cable."""

import os
from dataclasses import replace

import pytest

from tests.faults import bench
from tests.faults.bench import Moment
from tests.faults.clusters import loopback_places, ray_cluster
from tests.faults.networks import namespaces_missing
from tests.faults.rounds import outcome
from tests.faults.servers import postgres_missing
from tests.faults.study import STUDY, Command

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


@pytest.fixture
def cluster():
    with ray_cluster(loopback_places(1), head_cpus=1, dashboard=True) as cluster:
        cluster.wait_for(1)
        yield cluster


def test_another_token_is_one_line(cluster, tmp_path):
    """Of a study that wants to join, and of a question for the job server."""
    (tmp_path / "token").write_text("0" * 64)
    environment = cluster.environment | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    for words, told in (
        (
            [*STUDY, "--ray-address", cluster.address],
            f"the Ray cluster at {cluster.address} cannot be reached",
        ),
        (["status", "--address", cluster.dashboard], "RAY_AUTH_TOKEN"),
    ):
        command = Command(tmp_path / words[0], study=words, environment=environment)
        assert command.run() == 2
        (line,) = [line for line in command.output().splitlines() if line.startswith("error: ")]
        assert told in line
        assert "Traceback" not in command.output()


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

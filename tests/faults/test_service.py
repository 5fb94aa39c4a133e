"""A group's service: MLflow on PostgreSQL, three Ray nodes, Prometheus; studies as jobs of the cluster."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import requests
import yaml

from tests.faults import bench, processes
from tests.faults.clusters import loopback_places, ray_cluster
from tests.faults.servers import Server, mlflow_server, postgres_missing
from tests.faults.study import NAME, ROOT, STUDY, Command, differences, facts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(postgres_missing()), reason=postgres_missing()),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Debian's package prometheus"),
]


def prometheus(folder, cluster):
    """Debian's; it finds the nodes in the file that Ray's head writes."""
    folder.mkdir()
    address = f"127.0.0.1:{processes.free_port()}"
    jobs = [{"job_name": "ray", "file_sd_configs": [{"files": [str(cluster.discovery)]}]}]
    content = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(content))
    options = (
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address={address}",
    )
    return Server(folder, ["prometheus", *options], f"http://{address}", "/-/ready")


def series(prom, query):
    """Of an instant query: (labels, value) each."""
    answer = requests.get(f"{prom.uri}/api/v1/query", params={"query": query}, timeout=10).json()
    assert answer["status"] == "success", answer
    return [(each["metric"], float(each["value"][1])) for each in answer["data"]["result"]]


@pytest.mark.campaign  # a busy machine's nodes may take no jobs for minutes
def test_a_study_is_submitted_watched_stopped_and_submitted_again(uninterrupted, tmp_path):
    with (
        bench.machines(tmp_path, dashboard=True) as where,
        prometheus(tmp_path / "prom", where.cluster) as prom,
    ):
        address = ["--address", where.cluster.dashboard]
        places = [
            word for name in ("storage", "results") for word in (f"--{name}-path", str(tmp_path / name))
        ]
        study = [*address, *STUDY, "--tracking-uri", where.tracking_uri, *places]
        environment = where.cluster.environment

        def command(folder, name, *words):
            return Command(tmp_path / folder, study=[name, *words], environment=environment)

        with command("submit", "submit", *study) as submitted:
            processes.wait_until(
                lambda: takes_jobs(where.cluster, submitted), 400, "a node that takes jobs"
            )
            assert submitted.wait_for("epoch 1/3"), submitted.output()
            watched = f'ray_batchscale_val_acc{{study="{NAME}"}}'
            processes.wait_until(lambda: series(prom, watched), 60, "Prometheus to have val_acc")
            for labels, val_acc in series(prom, watched):
                assert re.fullmatch(r"(modern)?bert-tiny \d+ fixed", labels["trial"])
                assert 0 <= val_acc <= 1
            every = queries_of_the_board()
            empty = [
                query
                for query in every
                if not series(prom, query) and "gram" not in query and "gpu" not in query
            ]
            assert not empty
            with command("stop", "stop", *address, "--name", NAME) as stop:
                assert stop.run() == 0, stop.output()
            assert submitted.wait() == 130
        with command("again", "submit", *study) as again:
            assert again.run() == 0, again.output()
            assert "resuming: " in again.output()
        with command("status", "status", *address, "--name", NAME) as status:
            assert status.run() == 0
            states = re.findall("SUCCEEDED|STOPPED|FAILED", status.output())
            assert states == ["SUCCEEDED", "STOPPED"]  # the newest first
        with command("logs", "logs", *address, "--name", NAME) as logs:
            assert logs.run() == 0
            assert "best model" in logs.output()
        other = [*study, "--name", "other", "--epochs", "60"]
        with command("long", "submit", *other) as long, command("refused", "submit", *other) as refused:
            assert long.start().wait_for("epoch 1/60"), long.output()
            assert refused.run() == 2, refused.output()  # and is then the newest job of its study
            assert "is being run by" in refused.output()
            with command("stop-long", "stop", *address, "--name", "other") as stop:
                assert stop.run() == 0
            assert long.wait() == 130
        where.command.folder.mkdir(exist_ok=True)
        assert not differences(uninterrupted, facts(where.tracking_uri, where.command.folder))


def test_a_job_server_that_is_given_another_token_is_one_line(tmp_path):
    token = tmp_path / "token"
    token.write_text("0" * 64)
    with ray_cluster(loopback_places(1), head_cpus=1, dashboard=True) as cluster:
        cluster.wait_for(1)
        environment = cluster.environment | {"RAY_AUTH_TOKEN_PATH": str(token)}
        words = ["status", "--address", cluster.dashboard]
        with Command(tmp_path / "asked", study=words, environment=environment) as asked:
            assert asked.run() == 2
        (line,) = [line for line in asked.output().splitlines() if line.startswith("error: ")]
        assert "RAY_AUTH_TOKEN" in line
        assert "Traceback" not in asked.output()


def takes_jobs(cluster, submitted):
    """Submit; a node is alive some seconds before its agent takes jobs."""
    submitted.start()
    submitted.wait_until(lambda: "runs as job" in submitted.said(), 60, "the answer")
    if "runs as job" in submitted.said():
        return True
    assert "No available agent" in submitted.said(), submitted.said()
    return False


def queries_of_the_board():
    """Every query of the Grafana board, for all studies and trials."""
    board = json.loads((ROOT / "docker" / "grafana" / "studies.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    assert queries
    return [re.sub(r"\$\w+", ".*", query) for query in queries]


def test_a_server_with_passwords_is_said_to_ask_for_one(tmp_path):
    folders = [tmp_path / name for name in ("secrets", "token", "postgres-secret")]
    for folder in folders:
        folder.mkdir()
    subprocess.run([sys.executable, ROOT / "docker" / "make_secrets.py", *folders], check=True)
    secrets = folders[0]
    password = (secrets / "mlflow").read_text()
    configuration = secrets / "basic_auth.ini"
    configuration.write_text(configuration.read_text().replace("/mlflow/", f"{tmp_path}/"))
    environment = {"MLFLOW_AUTH_CONFIG_PATH": str(configuration), "MLFLOW_FLASK_SERVER_SECRET_KEY": "key"}
    with mlflow_server(
        tmp_path / "mlflow", f"sqlite:///{tmp_path}/mlflow.db", environment=environment
    ) as server:
        words = ["report", "--name", "films", "--tracking-uri", server.uri]
        with Command(tmp_path / "without", study=words) as refused:
            assert refused.run() == 2
            assert (
                f"{server.uri} asks for a password: give it in MLFLOW_TRACKING_USERNAME" in refused.output()
            )
        known = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
        with Command(tmp_path / "with", study=words, environment=known) as admitted:
            assert admitted.run() == 2
            assert "unknown study" in admitted.output()

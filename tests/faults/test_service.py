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
        places = [f"--storage-path={tmp_path}/storage", f"--results-path={tmp_path}/results"]
        study = [*STUDY, "--tracking-uri", where.tracking_uri, *places]
        environment = where.cluster.environment

        def command(name, *words):
            return Command(tmp_path / name, study=[name, *address, *words], environment=environment)

        def said(name, *words):
            with command(name, *words) as asked:
                assert asked.run() == 0, asked.output()
                return asked.said()

        with command("submit", *study) as submitted:
            processes.wait_until(lambda: takes_jobs(submitted), 400, "a node that takes jobs")
            assert submitted.wait_for("epoch 1/3"), submitted.output()
            watched = f'ray_batchscale_val_acc{{study="{NAME}"}}'
            processes.wait_until(lambda: series(prom, watched), 60, "Prometheus to have val_acc")
            for labels, val_acc in series(prom, watched):
                assert re.fullmatch(r"(modern)?bert-tiny \d+ fixed", labels["trial"])
                assert 0 <= val_acc <= 1
            asked = [query for query in queries_of_the_board() if not re.search("gram|gpu", query)]
            assert not [query for query in asked if not series(prom, query)]
            said("stop", "--name", NAME)
            assert submitted.wait() == 130
        assert "resuming: " in said("submit", *study)
        states = re.findall("SUCCEEDED|STOPPED|FAILED", said("status", "--name", NAME))
        assert states == ["SUCCEEDED", "STOPPED"]  # the newest first
        assert "best model" in said("logs", "--name", NAME)
        other = [*study, "--name", "other", "--epochs", "60"]
        with command("submit", *other) as long:
            assert long.start().wait_for("epoch 1/60"), long.output()
            refused = Command(
                tmp_path / "refused", study=["submit", *address, *other], environment=environment
            )
            assert refused.run() == 2, refused.output()  # and is then the newest job of its study
            assert "is being run by" in refused.output()
            said("stop", "--name", "other")
            assert long.wait() == 130
        where.command.folder.mkdir(exist_ok=True)
        assert not differences(uninterrupted, facts(where.tracking_uri, where.command.folder))


def takes_jobs(submitted):
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
    database = f"sqlite:///{tmp_path}/mlflow.db"
    with mlflow_server(tmp_path / "mlflow", database, environment=environment) as server:
        words = ["report", "--name", "films", "--tracking-uri", server.uri]
        with Command(tmp_path / "without", study=words) as refused:
            assert refused.run() == 2
            told = f"{server.uri} asks for a password: give it in MLFLOW_TRACKING_USERNAME"
            assert told in refused.output()
        known = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
        with Command(tmp_path / "with", study=words, environment=known) as admitted:
            assert admitted.run() == 2
            assert "unknown study" in admitted.output()

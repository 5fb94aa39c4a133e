"""The group's service: what each container may do, and who can read its passwords."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers import ROOT

MAKE_SECRETS = ROOT / "docker" / "make_secrets.py"
SERVICES = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
AS_ROOT = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, setpriv"
)


def volumes(service):
    """Where the service has which volume or file of the checkout: {place: name}."""
    return {place: name for name, place, *_ in (v.split(":") for v in SERVICES[service]["volumes"])}


def user(service):
    """Its user, by number; that of the Dockerfile where compose.yaml names none."""
    of_image = re.search(r"^USER (\d+)", (ROOT / "docker" / "Dockerfile").read_text(), re.M)[1]
    named = str(SERVICES[service].get("user", of_image)).split(":")[0]
    return 0 if named == "root" else int(named)


def start(folder, *before):
    """What the service `secrets` says as it starts, its volumes being folders in ``folder``."""
    _, script, *places = SERVICES["secrets"]["entrypoint"]
    assert script == "/opt/batchscale/make_secrets.py"
    folders = [folder / volumes("secrets")[place] for place in places]
    for each in folders:
        each.mkdir(exist_ok=True)
    command = [*before, sys.executable, str(MAKE_SECRETS), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, umask=0)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def secrets(folder):
    """{path in ``folder``: content}."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_text() for name, path in files.items()}


def confined():
    """The command that starts another with the rights that compose.yaml leaves to `secrets`."""
    kept = ",".join(["-all", *(f"+{each.lower()}" for each in SERVICES["secrets"]["cap_add"])])
    return ["setpriv", "--bounding-set", kept, "--inh-caps=-all", "--no-new-privs"]


def assert_each_is_its_readers_own(folder):
    as_root = os.geteuid() == 0
    found = 0
    for service in ("mlflow", "postgres", "ray", "ray-gpu"):
        for name in volumes(service).values():
            for path in (folder / name).glob("*"):
                status = path.stat()
                assert status.st_mode & 0o777 == 0o600, path
                assert status.st_uid == (user(service) if as_root else os.geteuid()), path
                found += 1
    assert found == 4 + 1 + 1 + 1  # two services read Ray's token


@pytest.mark.parametrize("rights", [(), pytest.param(confined(), marks=AS_ROOT)], ids=["all", "compose's"])
def test_passwords_are_made_once_and_what_is_said_leads_to_them_and_is_none(tmp_path, rights):
    said = start(tmp_path, *rights)
    made = secrets(tmp_path)
    assert_each_is_its_readers_own(tmp_path)
    assert made["secrets/postgres"] == made["postgres-secret/postgres"]
    words = {word for content in made.values() for word in re.findall(r"[0-9a-f]{64}", content)}
    assert len(words) == 4
    commands = re.findall(r"exec (?:-T )?(\w+) cat (/\S+)/(\w+)", said)
    assert len(commands) == 4
    assert all((tmp_path / volumes(service)[place] / name).read_text() for service, place, name in commands)
    said += start(tmp_path, *rights)  # on files of others
    assert not [word for word in words if word in said]
    assert secrets(tmp_path) == made


def test_a_password_is_nobody_elses_from_its_first_byte(tmp_path, monkeypatch):
    """Nothing tightens rights afterwards, and none are masked."""
    spec = importlib.util.spec_from_file_location("make_secrets", MAKE_SECRETS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(Path, "chmod", lambda *_: None)
    before = os.umask(0)
    try:
        module.make_secrets(tmp_path, tmp_path, tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("mlflow", "basic_auth.ini", "mlflow_session", "ray", "postgres"), 0o600)


@AS_ROOT
def test_passwords_of_an_earlier_version_stay_and_are_closed(tmp_path):
    """It left them 0644, root's, and PostgreSQL's for both its readers in one place."""
    earlier = {
        "secrets/mlflow": "a",
        "secrets/postgres": "b",
        "secrets/mlflow_session": "c",
        "token/ray": "d",
    }
    earlier |= {"secrets/basic_auth.ini": "admin_password = a", "secrets/complete": ""}
    for name, content in earlier.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o644)
    start(tmp_path, *confined())
    assert secrets(tmp_path) == earlier | {"postgres-secret/postgres": "b"}
    (tmp_path / "secrets" / "complete").unlink()
    assert_each_is_its_readers_own(tmp_path)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name):
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"256m|\$\{[A-Z]+(_GPU)?_MEMORY:-\d+g\}", service["mem_limit"])
    assert service["pids_limit"]
    assert ("cap_add" in service) == (name == "secrets")
    assert (user(name) == 0) == (name == "secrets")
    assert "privileged" not in service
    assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))


def test_images_of_others_are_pinned_by_digest():
    others = [service["image"] for service in SERVICES.values() if "build" not in service]
    others += re.findall(r"^ARG BASE=(\S+)", (ROOT / "docker" / "Dockerfile").read_text(), re.M)
    assert len(others) == 4
    assert all(re.fullmatch(r"docker\.io/[\w/]+:[\w.-]+@sha256:[0-9a-f]{64}", image) for image in others)


def test_every_pod_on_kubernetes_is_confined():
    spec = yaml.safe_load((ROOT / "docker" / "kuberay" / "rayjob.yaml").read_text())["spec"]
    cluster = spec["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [spec["submitterPodTemplate"]["spec"], *(group["template"]["spec"] for group in groups)]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()

"""Make the passwords of the service on its first start, never change them, and show none."""

import os
import secrets
import sys
from pathlib import Path

_USER, _POSTGRES = 1000, 999  # whom mlflow and Ray's nodes run as, and postgres, in compose.yaml
_AUTH = """\
[mlflow]
default_permission = READ
database_uri = sqlite:////mlflow/basic_auth.db
admin_username = admin
admin_password = {password}
"""
_EXEC = "docker compose -f docker/compose.yaml exec"
_WHERE = f"""\
The passwords, made on the first start, lie in the service's volumes. To read them:
  {_EXEC} mlflow cat /secrets/mlflow    # MLflow, user admin
  {_EXEC} ray cat /token/ray            # Ray's dashboard and job server
To submit studies from this shell, without showing them:
  export MLFLOW_TRACKING_USERNAME=admin
  export MLFLOW_TRACKING_PASSWORD=$({_EXEC} -T mlflow cat /secrets/mlflow)
  export RAY_AUTH_TOKEN=$({_EXEC} -T ray cat /token/ray)"""


def make_secrets(for_mlflow: Path, for_ray: Path, for_postgres: Path) -> None:
    """Write what the services read, each into a folder of its own.

    Whoever may submit studies can read what Ray's nodes can: they get the token alone. PostgreSQL's
    password has two readers, and a file for each.
    """
    password = _kept(for_mlflow / "mlflow", secrets.token_hex(32), _USER)
    _kept(for_mlflow / "basic_auth.ini", _AUTH.format(password=password), _USER)
    _kept(for_mlflow / "mlflow_session", secrets.token_hex(32), _USER)
    _kept(for_ray / "ray", secrets.token_hex(32), _USER)
    database = _kept(for_mlflow / "postgres", secrets.token_hex(32), _USER)
    _kept(for_postgres / "postgres", database, _POSTGRES)


def _kept(path: Path, content: str, reader: int) -> str:
    """What the file holds, ``content`` if it is new; it belongs to its one reader, closed to all others."""
    if not path.exists():
        unfinished = path.with_name(f".{path.name}")
        unfinished.unlink(missing_ok=True)
        unfinished.touch(0o600, exist_ok=False)
        unfinished.write_text(content)
        unfinished.replace(path)
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, reader, reader)
    return path.read_text()


if __name__ == "__main__":
    make_secrets(*map(Path, sys.argv[1:]))
    print(_WHERE)

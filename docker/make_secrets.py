"""Make the passwords of the service on its first start, show them once, and never again change them."""

import secrets
import sys
from pathlib import Path

_AUTH = """\
[mlflow]
default_permission = READ
database_uri = sqlite:////mlflow/basic_auth.db
admin_username = admin
admin_password = {password}
"""
_SHOWN = """\
Kept in the volumes `secrets` and `token`, and shown this once:
  MLflow          user admin, password {mlflow}
  Ray dashboard   token {ray}
To submit studies:
  export MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD={mlflow} RAY_AUTH_TOKEN={ray}"""


def make_secrets(folder: Path, for_ray: Path) -> str:
    """Write the files that the services read; returns what to tell the user.

    Whoever may submit studies can read what Ray's nodes can: they get the folder ``for_ray`` alone.
    """
    if (folder / "complete").exists():
        return "the service has its passwords since its first start"
    made = {name: secrets.token_hex(32) for name in ("postgres", "mlflow", "mlflow_session", "ray")}
    for name, value in made.items():
        ((for_ray if name == "ray" else folder) / name).write_text(value)
    (folder / "basic_auth.ini").write_text(_AUTH.format(password=made["mlflow"]))
    (folder / "complete").touch()
    return _SHOWN.format(**made)


if __name__ == "__main__":
    print(make_secrets(*map(Path, sys.argv[1:])))

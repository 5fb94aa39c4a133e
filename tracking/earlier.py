"""The trials of all studies in a store, for whoever wants to know what to expect of the next."""

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow.entities import ViewType

from errors import StoppedError, UserError, printable
from tracking.connection import Connection
from tracking.runs import FORMAT, SUPERSEDED
from tracking.store_address import Say, check_store, check_store_exists, nobody, quiet_mlflow
from tracking.trial_run import TrialRun

_MOST = 1000  # trials that are read


@dataclass(frozen=True)
class EarlierTrial:
    """A trained trial of any study."""

    study: str
    run: TrialRun

    @property
    def params(self) -> Mapping[str, str]:
        """The fields of its TrialConfig, as MLflow keeps them."""
        return self.run.params


def earlier_trials(tracking_uri: str, say: Say = nobody) -> list[EarlierTrial]:
    """The trained trials of a store, the newest first; none if the store does not exist or answer."""
    quiet_mlflow()
    try:
        check_store_exists(tracking_uri)  # because check_store creates a missing one
        check_store(tracking_uri, say)
        connection = Connection(tracking_uri, nobody, patience=0)
        return connection.repeat(lambda: _search(connection))
    except (UserError, StoppedError):
        return []


def _search(connection: Connection) -> list[EarlierTrial]:
    client = connection.client
    names = {each.experiment_id: printable(each.name) for each in client.search_experiments()}
    newest_first = ["attributes.start_time DESC"]
    trained = f"tags.trained = 'true' and tags.format = '{FORMAT}'"  # other formats cannot be read
    found = client.search_runs(list(names), trained, ViewType.ACTIVE_ONLY, _MOST, newest_first)
    return [
        EarlierTrial(names[run.info.experiment_id], TrialRun(connection, run))
        for run in found
        if SUPERSEDED not in run.data.tags
    ]

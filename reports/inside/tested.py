"""What the analysis looks at: the tested cells of a study at one seed, and the texts of its test split."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from errors import UserError, unknown
from reports.study_data import Cell, StudyData, TrialData

_DEFAULT_RULE = "fixed"
_SEED = 0  # of every sample, so that a second analysis shows the same texts


@dataclass(frozen=True)
class TestedCell:
    """A cell whose trial has been tested."""

    model: str
    target_batch_size: int
    scaling_rule: str
    trial: TrialData

    @property
    def title(self) -> str:
        """``bert-base · target batch size 256``."""
        return f"{self.model} · target batch size {self.target_batch_size}"


@dataclass(frozen=True)
class TestedStudy:
    """The tested cells in reading order, at the study's first seed.

    More seeds would show the same texts again, which are no new evidence about them.
    """

    name: str
    seed: int
    cells: Sequence[TestedCell]
    test: pd.DataFrame  # index: row_id; columns: label, text; in the test split's order
    label_names: Sequence[str]

    @property
    def trials(self) -> dict[str, TrialData]:
        """Trial hash -> trial; several cells may share one."""
        return {cell.trial.trial_hash: cell.trial for cell in self.cells}

    def models(self) -> list[str]:
        """The models, as planned."""
        return list(dict.fromkeys(cell.model for cell in self.cells))

    def target_batch_sizes(self) -> list[int]:
        """The target batch sizes, ascending."""
        return sorted({cell.target_batch_size for cell in self.cells})

    def at_rule(self, rule: str) -> list[TestedCell]:
        """The cells of one scaling rule."""
        return [cell for cell in self.cells if cell.scaling_rule == rule]

    def correct(self) -> pd.DataFrame:
        """Which trial is right on which text: bool, indexed by row_id, a column per trial hash."""
        columns = {trial_hash: trial.correct() for trial_hash, trial in self.trials.items()}
        return pd.DataFrame(columns).loc[self.test.index]

    def sample(self, size: int) -> pd.DataFrame:
        """At most ``size`` test texts, drawn without replacement and always the same, in their order."""
        if len(self.test) <= size:
            return self.test
        chosen = np.random.default_rng(_SEED).choice(len(self.test), size, replace=False)
        return self.test.iloc[np.sort(chosen)]


def tested_study(data: StudyData, test_split: pd.DataFrame) -> TestedStudy:
    """Pick the tested cells of the first seed; a UserError where there are none."""
    seed = data.axis_values("seed")[0]
    found = [(cell, data.trial(cell)) for cell in data.cells if cell.seed == seed]
    cells = [_tested(cell, trial) for cell, trial in found if trial is not None and trial.is_tested]
    if not cells:
        raise UserError(f"no trial of study '{data.name}' has been tested yet: run its command again")
    names = data.plan["dataset"]["label_names"]
    predictions = cells[0].trial.predictions["best"]
    if set(predictions["row_id"]) != set(test_split["row_id"]):
        raise UserError(
            f"the test split of study '{data.name}' in MLflow is not what its trials were tested on"
        )
    if not test_split["label"].isin(range(len(names))).all():
        raise UserError(f"the test split of study '{data.name}' in MLflow names unknown classes")
    return TestedStudy(data.name, seed, cells, test_split.set_index("row_id"), names)


def choose_rule(study: TestedStudy, wanted: str | None) -> str:
    """The scaling rule to show: the one asked for, else ``fixed``, else the study's first."""
    rules = list(dict.fromkeys(cell.scaling_rule for cell in study.cells))
    if wanted is None:
        return _DEFAULT_RULE if _DEFAULT_RULE in rules else rules[0]
    if wanted not in rules:
        raise unknown(f"scaling rule in study {study.name}", wanted, rules)
    return wanted


def count_words(text: str) -> int:
    """Words are what stands between blanks."""
    return len(text.split())


def _tested(cell: Cell, trial: TrialData) -> TestedCell:
    return TestedCell(cell.model, cell.target_batch_size, cell.scaling_rule, trial)

"""The sections of a report: each module here is one, with its sentences, tables and pictures.

A module has PLACE, a number that orders the sections, and ``section(source)``: a Section, or None if
the study has nothing of the kind.
"""

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cached_property

from reports.content import Section
from reports.study_data import StudyData
from reports.verdicts import ComparisonFamily, compare_cells
from tracking.study_store import StudyRuns


@dataclass(frozen=True)
class Source:
    """What sections are made from; ``target_val_acc``: the goal that the user asks about."""

    study: StudyData
    runs: StudyRuns
    target_val_acc: float | None = None

    @cached_property
    def comparisons(self) -> ComparisonFamily:
        return compare_cells(self.study)


def make_sections(source: Source) -> list[Section]:
    """All sections that have something to say, in their order."""
    found = [importlib.import_module(f"{__name__}.{each.name}") for each in pkgutil.iter_modules(__path__)]
    found.sort(key=lambda module: module.PLACE)
    return [section for module in found if (section := module.section(source))]

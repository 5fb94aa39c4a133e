"""From tracked runs to tables; needs no GPU and no Ray."""

from reports.study_report import write_report

__all__ = ["write_report"]

"""From tracked runs to tables, pictures and verdicts; needs no GPU and no Ray."""

from reports.content import terminal_table
from reports.report import Report, write_report

__all__ = ["Report", "terminal_table", "write_report"]

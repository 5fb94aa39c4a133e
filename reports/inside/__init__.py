"""What the trained models look at and where they err; runs on the CPU."""

from reports.inside.analysis import write_inside
from reports.inside.attention import View

__all__ = ["View", "write_inside"]

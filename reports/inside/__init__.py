"""What the trained models look at and where they err; runs on the CPU."""

from reports.inside.analysis import View, write_inside

__all__ = ["View", "write_inside"]

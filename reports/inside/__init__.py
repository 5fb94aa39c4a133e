"""What the trained models look at and where they err; runs on the CPU."""

from reports.inside.analysis import View, read_inside, write_inside

__all__ = ["View", "read_inside", "write_inside"]

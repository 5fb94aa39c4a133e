"""MANY trials: plan, prepare assets, launch or resume on Ray, progress, final test."""

from search_spaces import StoppedError, UserError

__all__ = ["StoppedError", "UserError"]

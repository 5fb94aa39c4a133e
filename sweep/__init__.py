"""MANY trials: plan, prepare assets, launch or resume on Ray, progress, final test."""

from search_spaces import StoreAwayError, UserError

__all__ = ["StoreAwayError", "UserError"]

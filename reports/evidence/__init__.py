"""Which differences of a study are real: comparisons, statistics, verdicts, flags."""

"""The answer of a study in a few sentences, for a reader in a hurry."""

import math
from collections.abc import Callable, Iterable, Sequence

from reports.comparisons import Comparison, axis_words
from reports.prose import counted, listed, number
from reports.verdicts import BETTER, NOT_APART, WORSE, Family, Verdict

_MODELS_WITH_A_SENTENCE_EACH = 2


def headline(family: Family) -> str:
    """Two to five sentences: what is worse, what is better, what cannot be told, and what that is about."""
    if not family.verdicts:
        return " ".join(["No comparison can be made.", *family.notes, *family.left_out_sentences()])
    missing = len(family.left_out)
    waiting = [f"{counted(missing, 'comparison')} could not be made yet."] if missing else []
    return " ".join([*_findings(family.verdicts), *waiting, *family.notes[:1], family.scope()])


def _findings(verdicts: tuple[Verdict, ...]) -> list[str]:
    by_model = _grouped(verdicts, lambda verdict: verdict.comparison.model)
    if len(by_model) <= _MODELS_WITH_A_SENTENCE_EACH:
        return [f"{model}: {_finding(group)}." for model, group in by_model.items()]
    finding = _finding(verdicts, show_model=True)
    return [f"{finding[:1].upper()}{finding[1:]}."]


def _finding(verdicts: Iterable[Verdict], show_model: bool = False) -> str:
    by_question = _grouped(verdicts, lambda verdict: _question(verdict.comparison))
    return "; ".join(
        f"of {counted(len(group), 'comparison')} {question}, {_counts(group, show_model)}"
        for question, group in by_question.items()
    )


def _question(comparison: Comparison) -> str:
    if comparison.axis == "epoch":
        return "of the last epoch with the best"
    return f"with {axis_words(comparison.axis)} {comparison.baseline}"


def _counts(verdicts: Sequence[Verdict], show_model: bool) -> str:
    """``2 are worse (…) and 4 cannot be told apart (…)``."""
    by_outcome = _grouped(verdicts, lambda verdict: verdict.outcome)
    parts = []
    for outcome in (WORSE, BETTER):
        if group := by_outcome.get(outcome):
            names = listed([_name(verdict.comparison, show_model) for verdict in group])
            parts.append(f"{len(group)} {_be(group)} {outcome} ({names})")
    if alike := by_outcome.get(NOT_APART):
        count = f"{len(alike)} cannot be told apart" if parts else "none shows a difference"
        parts.append(count + _overlooked(alike))
    return listed(parts)


def _overlooked(verdicts: Sequence[Verdict]) -> str:
    detectable = [verdict.smallest_detectable for verdict in verdicts]
    if any(map(math.isnan, detectable)):
        return ""
    return f" (one below about {number(max(detectable))} points would probably go unnoticed)"


def _be(group: Sequence[Verdict]) -> str:
    return "is" if len(group) == 1 else "are"


def _name(comparison: Comparison, show_model: bool) -> str:
    others = {axis: at for axis, at in comparison.fixed.items() if show_model or axis != "model"}
    value = [] if comparison.axis == "epoch" else [str(comparison.value)]
    return " · ".join([*value, *map(str, others.values())])


def _grouped(verdicts: Iterable[Verdict], key: Callable[[Verdict], str]) -> dict[str, list[Verdict]]:
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(key(verdict), []).append(verdict)
    return groups

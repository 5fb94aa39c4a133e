"""The answer of a study in a few sentences, for a reader in a hurry."""

import math
from collections.abc import Sequence

from reports.evidence.verdicts import NOT_APART, Family, Verdict
from reports.prose import counted, listed, number

_CLAIMS = 6  # more than these and the table below is easier to read


def headline(family: Family) -> list[str]:
    """A paragraph per model, the largest differences first, and one that says what it is about."""
    if not family.verdicts:
        return [" ".join(["No comparison can be made.", *family.notes, *family.left_out_sentences()])]
    by_model: dict[str, list[Verdict]] = {}
    for verdict in family.verdicts:
        by_model.setdefault(verdict.comparison.model, []).append(verdict)
    paragraphs = [f"{model}: {_findings(verdicts)}" for model, verdicts in by_model.items()]
    return [*paragraphs, " ".join([family.scope(), *family.notes, *family.left_out_sentences()])]


def _findings(verdicts: Sequence[Verdict]) -> str:
    claims = [verdict for verdict in verdicts if verdict.outcome != NOT_APART]
    claims.sort(key=lambda verdict: -abs(verdict.difference))
    alike = [verdict for verdict in verdicts if verdict.outcome == NOT_APART]
    texts = [_claim(verdict) for verdict in claims[:_CLAIMS]]
    if len(claims) > _CLAIMS:
        texts.append(f"{len(claims) - _CLAIMS} more differences are in the table")
    return " ".join([*([f"{listed(texts)}."] if texts else []), *_rest(alike, len(verdicts))])


def _claim(verdict: Verdict) -> str:
    comparison = verdict.comparison
    under = {axis: at for axis, at in comparison.fixed.items() if axis != "model"}
    where = " · ".join(map(str, under.values()))
    return (
        f"{comparison.claimed} is {verdict.outcome} than {comparison.baseline} "
        f"by {number(abs(verdict.difference))} points" + (f" ({where})" if where else "")
    )


def _rest(alike: Sequence[Verdict], total: int) -> list[str]:
    if not alike:
        return []
    which = "all" if len(alike) == total else f"the other {len(alike)} of"
    subject = f"In {which} {counted(total, 'comparison')} the two cannot be told apart"
    detectable = [v.smallest_detectable for v in alike if not math.isnan(v.smallest_detectable)]
    blind = len(alike) - len(detectable)
    if not detectable:
        return [f"{subject}, and no difference, however large, could have been detected."]
    unnoticed = f"a difference of less than about {number(max(detectable))} points"
    but = f", and in {blind} of them any difference, however large" if blind else ""
    return [f"{subject}: {unnoticed} would probably have gone unnoticed{but}."]

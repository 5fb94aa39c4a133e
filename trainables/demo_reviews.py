"""The generated corpus of --demo: seeded film reviews whose label must be worked out, not looked up.

A review is a handful of clauses about aspects of a film. Each clause has a polarity, which a negation
flips, and a weight, which an intensifier and a contrast ("…, but …") change. The label is the sign of
the weighted sum; a share of the labels is then flipped, as annotators do.
"""

import random

NAME = "demo-reviews"
SIZE = 4000
LABEL_NAMES: tuple[str, ...] = ("negative", "positive")
LABEL_NOISE = 0.04

_ASPECTS = (
    "plot acting script ending soundtrack dialogue pacing cast camera editing humour opening villain "
    "story direction lighting romance action costume finale"
).split()
_POSITIVE = (
    "superb moving clever charming gripping brilliant fresh elegant warm vivid honest tender witty "
    "stunning graceful lively memorable sharp rich delightful"
).split()
_NEGATIVE = (
    "dull clumsy bland tedious hollow shallow awful lazy stale awkward noisy dreary forced messy "
    "pointless flat sloppy tiresome weak predictable"
).split()
_INTENSIFIERS = {"slightly": 0.5, "": 1.0, "really": 1.5, "utterly": 2.0}
_NEGATIONS = ("not", "never", "hardly")
_AGREEMENT = 0.85  # how often a clause shares the mood of its review
_FILLERS = (
    "i watched it on a rainy evening",
    "my brother chose this one",
    "it runs for about two hours",
    "the cinema was half empty",
    "we talked about it on the way home",
    "it is set in a small coastal town",
    "the director has made three films before",
    "i had read the book years ago",
)


def generate(size: int = SIZE, seed: int = 0) -> tuple[list[str], list[int]]:
    """``size`` distinct texts and their labels (0 negative, 1 positive), a function of ``seed``."""
    rng = random.Random(seed)
    reviews: dict[str, int] = {}
    while len(reviews) < size:
        text, score = _review(rng)
        if score != 0:
            flipped = rng.random() < LABEL_NOISE
            reviews.setdefault(text, int((score > 0) != flipped))
    return list(reviews), list(reviews.values())


def _review(rng: random.Random) -> tuple[str, float]:
    mood = rng.choice((-1, 1))
    sentences, score = [], 0.0
    aspects = rng.sample(_ASPECTS, 4)
    while aspects:
        clause, value = _clause(rng, aspects.pop(), mood)
        score += value
        if aspects and rng.random() < 0.2:
            other, value = _clause(rng, aspects.pop(), -1 if value > 0 else 1)
            clause, score = f"{clause} , but {other}", score + 2 * value
        sentences.append(clause)
    sentences += rng.sample(_FILLERS, rng.randint(0, 1))
    rng.shuffle(sentences)
    return " . ".join(sentences) + " .", score


def _clause(rng: random.Random, aspect: str, mood: int) -> tuple[str, float]:
    polarity = mood if rng.random() < _AGREEMENT else -mood
    negated = rng.random() < 0.15
    says_positive = (polarity > 0) != negated
    adjective = rng.choice(_POSITIVE if says_positive else _NEGATIVE)
    if negated:
        return f"the {aspect} was {rng.choice(_NEGATIONS)} {adjective}", float(polarity)
    intensifier = rng.choice(list(_INTENSIFIERS))
    words = f"the {aspect} was {intensifier} {adjective}".split()
    return " ".join(words), polarity * _INTENSIFIERS[intensifier]

"""Everything a trial reads, prepared once by the driver: token arrays and pretrained weights."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from search_spaces import TrialConfig
from trainables.encoders import EncoderAssets, load_encoder
from trainables.reviews import Reviews, ReviewSplits
from trainables.tokens import TokenArrays, pad_token, tokenize
from trainables.trial import TrialAssets


@dataclass(frozen=True)
class ModelAssets:
    """One model's share: what trials get, and the test split, which they do not."""

    trial: TrialAssets
    test: TokenArrays

    @property
    def encoder(self) -> EncoderAssets:
        """The pretrained encoder."""
        return self.trial.encoder


def prepare_assets(config: TrialConfig, splits: ReviewSplits) -> ModelAssets:
    """Load the weights of ``config.model`` and tokenise the splits with its tokenizer."""
    encoder = load_encoder(config.model, splits.train.texts)
    tokenizer = encoder.tokenizer()

    def tokens(split: Reviews) -> TokenArrays:
        return tokenize(split.texts, split.labels, split.row_ids, tokenizer, config.max_length)

    train, val = tokens(splits.train), tokens(splits.val)
    trial = TrialAssets(
        encoder=encoder,
        pad_token=pad_token(tokenizer),
        classes=len(splits.label_names),
        train=train,
        val=val,
        digest=_digest([train.tokens, val.tokens, *encoder.weights.values()]),
    )
    return ModelAssets(trial, tokens(splits.test))


def _digest(arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]

"""Everything a trial reads, prepared once by the driver: token arrays and pretrained weights."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from search_spaces import TrialConfig
from trainables.batches import TokenArrays, pad_token, tokenize
from trainables.encoder_checks import check_reading
from trainables.encoders import EncoderAssets, first_states, load_pretrained, pack

if TYPE_CHECKING:  # workers read assets, and do not need the libraries that read data sets
    from trainables.review_splits import ReviewSplits
    from trainables.reviews import Reviews

_SAYS_NOTHING = {"transformers_version", "_name_or_path"}  # only where a model comes from


@dataclass(frozen=True)
class TrialAssets:
    """What a trial of one model reads; the test split is not included.

    ``digest`` identifies weights and tokens: a checkpoint with another digest must not be resumed.
    """

    encoder: EncoderAssets
    pad_token: int
    classes: int
    train: TokenArrays
    val: TokenArrays
    digest: str


@dataclass(frozen=True)
class ModelAssets:
    """The assets of one model: those that trials get, and the test split, which they do not get."""

    trial: TrialAssets
    test: TokenArrays


def prepare_assets(config: TrialConfig, splits: "ReviewSplits") -> ModelAssets:
    """Load and check the weights of ``config.model``, and tokenise the splits with its tokenizer.

    Raises UserError if a study of the model would fail or mean nothing.
    """
    pretrained, tokenizer = load_pretrained(config.model, splits.train.texts)
    encoder = pack(pretrained, tokenizer)
    tokenizer = encoder.tokenizer()
    features = partial(first_states, pretrained)
    check_reading(config.model, pretrained, features, tokenizer, config.max_length)

    def tokens(split: "Reviews") -> TokenArrays:
        return tokenize(split.texts, split.labels, split.row_ids, tokenizer, config.max_length)

    train, val = tokens(splits.train), tokens(splits.val)
    trial = TrialAssets(
        encoder=encoder,
        pad_token=pad_token(tokenizer),
        classes=len(splits.label_names),
        train=train,
        val=val,
        digest=_digest(encoder.config, [train.tokens, val.tokens, *encoder.weights.values()]),
    )
    return ModelAssets(trial, tokens(splits.test))


def _digest(config: Mapping[str, Any], arrays: Iterable[np.ndarray]) -> str:
    """Identifies what a trial learns from beside its TrialConfig, such as the encoder's dropout."""
    known = {name: value for name, value in config.items() if name not in _SAYS_NOTHING}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]

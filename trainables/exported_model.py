"""A trained classifier as a folder that stands alone: safetensors, config, tokenizer.

``_load_pyfunc`` is the entry point of MLflow's generic Python flavour. It makes
``mlflow.pyfunc.load_model(uri).predict(["a fine film"])`` work in a process without this project, and
unpickles nothing. This module does not import mlflow.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from trainables.batches import TokenTensors, pad_token, tokenize
from trainables.encoders import EncoderAssets, EncoderForClassification
from trainables.evaluation import evaluate
from trainables.own_config import without_foreign_code
from trainables.own_files import check_model_folder

_WEIGHTS = "model.safetensors"
_CLASSIFIER = "classifier.json"


@dataclass(frozen=True)
class ClassifierCard:
    """The facts in the folder beside weights, encoder config and tokenizer."""

    model: str
    label_names: tuple[str, ...]
    max_length: int
    dropout: float
    trial_hash: str
    epoch: int | float
    val_acc: float


@dataclass(frozen=True)
class ExportedModel:
    """A loaded classifier, on the CPU, in fp32."""

    card: ClassifierCard
    model: EncoderForClassification
    tokenizer: PreTrainedTokenizerBase

    @property
    def pad_token(self) -> int:
        return pad_token(self.tokenizer)

    def token_tensors(self, texts: Sequence[str]) -> TokenTensors:
        """The texts as tokens, cut at the model's ``max_length``; labels and row ids mean nothing."""
        unknown = np.zeros(len(texts), np.int64)
        arrays = tokenize(texts, unknown, unknown, self.tokenizer, self.card.max_length)
        return TokenTensors(arrays, self.pad_token, torch.device("cpu"))

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """``label`` and ``score`` (its probability) for one text, or for a list or column of texts."""
        texts = _texts(model_input)
        if not texts:
            return pd.DataFrame({"label": pd.Series(dtype=str), "score": pd.Series(dtype=float)})
        result = evaluate(self.model, self.token_tensors(texts), precision="fp32")
        labels = [self.card.label_names[i] for i in result.predictions]
        return pd.DataFrame({"label": labels, "score": result.probabilities.max(axis=1)})


def export_model(folder: Path, weights_file: Path, encoder: EncoderAssets, card: ClassifierCard) -> None:
    """Write the folder from the weights of a checkpoint and the assets of their training."""
    folder.mkdir(parents=True)
    shutil.copyfile(weights_file, folder / _WEIGHTS)
    AutoConfig.for_model(**encoder.config).save_pretrained(folder)
    encoder.write_tokenizer(folder)
    (folder / _CLASSIFIER).write_text(json.dumps(asdict(card), indent=2))


def load_exported_model(folder: Path, attention: str | None = None) -> ExportedModel:
    """Load what ``export_model`` wrote.

    ``attention`` is Transformers' ``attn_implementation``: only ``eager`` can return attention weights;
    None takes the fastest one.
    """
    values = json.loads((folder / _CLASSIFIER).read_text())
    card = ClassifierCard(**values | {"label_names": tuple(values["label_names"])})
    check_model_folder(folder)
    stored = AutoConfig.from_pretrained(folder, attn_implementation=attention, trust_remote_code=False)
    config = without_foreign_code(stored)
    model = EncoderForClassification(config, len(card.label_names), card.dropout, seed=0)
    model.load_state_dict(load_file(folder / _WEIGHTS))
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return ExportedModel(card, model.eval(), tokenizer)


def _load_pyfunc(data_path: str) -> ExportedModel:
    return load_exported_model(Path(data_path))


def _texts(model_input: Any) -> list[str]:
    if isinstance(model_input, pd.DataFrame):
        model_input = model_input.iloc[:, 0]
    texts = [model_input] if isinstance(model_input, str) else list(model_input)
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"a text is needed, not {text!r}")
    return texts

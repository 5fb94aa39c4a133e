"""A trial's best-epoch model, reloaded from MLflow on the CPU so that one can look inside it."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from errors import UserError, first_line
from tracking import TrialRun
from trainables.batches import Batch
from trainables.exported_model import ExportedModel, load_exported_model

_BATCH_SIZE = 32
_WEIGHTS_AT_ONCE = 2**18  # batch x length x length; times heads x layers x 4 bytes of memory


@dataclass(frozen=True)
class Reading:
    """How a model reads one text; ``length`` counts its tokens, special ones included."""

    tokens: Sequence[str]
    special: np.ndarray  # (length,) bool: [CLS], [SEP] and their like
    weights: np.ndarray  # (heads, length, length): row = the token that looks, sums to 1
    prediction: int
    probability: float  # of the prediction


@dataclass(frozen=True)
class ReloadedModel:
    """A classifier that can return its attention weights."""

    exported: ExportedModel

    def check(self, layer: int | None, head: int | None) -> None:
        """Raise UserError for a layer or head that the encoder does not have; both count from 1."""
        config = self.exported.model.encoder.config
        limits = {"layer": (layer, config.num_hidden_layers), "head": (head, config.num_attention_heads)}
        for name, (given, limit) in limits.items():
            if given is not None and not 1 <= given <= limit:
                model = self.exported.card.model
                raise UserError(f"--{name} {given} is not possible: {model} has {name}s 1 to {limit}")

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The classifier's inputs, (n, hidden), and its predictions, (n,), for ``texts`` in order."""
        data = self.exported.token_tensors(texts)
        order = torch.argsort(data.lengths, descending=True, stable=True)
        batches = [data.batch(chunk) for chunk in order.split(_BATCH_SIZE)]
        model = self.exported.model
        features = torch.cat([model.features(b.input_ids, b.attention_mask) for b in batches])
        predictions = model.classifier(features).argmax(dim=1)
        inverse = torch.argsort(order)
        return features[inverse].numpy(), predictions[inverse].numpy()

    def readings(self, texts: Sequence[str], layer: int | None, head: int | None) -> Iterator[Reading]:
        """How the model reads each text, in order, in one layer (default: the last).

        ``head`` picks one head; without it all are kept. Both count from 1.
        """
        data = self.exported.token_tensors(texts)
        size = max(1, _WEIGHTS_AT_ONCE // int(data.lengths.max()) ** 2)
        for chunk in torch.arange(len(data)).split(min(size, _BATCH_SIZE)):
            batch = data.batch(chunk)
            weights, probabilities = self._attend(batch, layer)
            if head is not None:
                weights = weights[:, head - 1 : head]
            for row, own in enumerate(unpadded(weights, batch.attention_mask)):
                ids = batch.input_ids[row, : own.shape[-1]].tolist()
                yield self._reading(ids, own, probabilities[row])

    @torch.no_grad()
    def _attend(self, batch: Batch, layer: int | None) -> tuple[Tensor, Tensor]:
        model = self.exported.model
        output = model.encoder(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_attentions=True
        )
        logits = model.classifier(output.last_hidden_state[:, 0])
        return output.attentions[-1 if layer is None else layer - 1], logits.double().softmax(dim=1)

    def _reading(self, ids: list[int], weights: Tensor, probabilities: Tensor) -> Reading:
        tokenizer = self.exported.tokenizer
        marks = {
            tokenizer.cls_token_id,
            tokenizer.sep_token_id,
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
        }
        return Reading(
            tokens=[str(tokenizer.decode([token])).strip() or "␣" for token in ids],
            special=np.array([token in marks for token in ids]),
            weights=weights.double().numpy(),
            prediction=int(probabilities.argmax()),
            probability=float(probabilities.max()),
        )


def reload_model(run: TrialRun) -> ReloadedModel:
    """Download the best-epoch model of a trial and load it with eager attention, which is exact too."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = run.download_model("best", Path(folder))
            return ReloadedModel(load_exported_model(path, attention="eager"))
        except UserError:
            raise
        except Exception as error:  # a different type for every kind of file that is not a model's
            raise UserError(f"the model of {run.name} cannot be loaded: {first_line(error)}") from error


def unpadded(weights: Tensor, attention_mask: Tensor) -> list[Tensor]:
    """Cut padding off attention weights, (batch, heads, length, length): one tensor per text.

    ``attention_mask`` is (batch, length), 1 where there is a token; padding stands on the right.
    """
    lengths = attention_mask.sum(dim=1).tolist()
    return [own[:, :length, :length] for own, length in zip(weights, lengths, strict=True)]

"""Models reloaded from MLflow on the CPU: how they read a text, and where their attention goes."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from errors import StoppedError, UserError, first_line
from tracking import TrialRun
from trainables.exported_model import ExportedModel, load_exported_model

_BATCH_SIZE = 32
_WEIGHTS_AT_ONCE = 2**18  # batch x length x length; times heads x layers x 4 bytes of memory


@dataclass(frozen=True)
class View:
    """What to look at. Layers and heads count from 1; None: the last layer, the mean over heads."""

    texts: Sequence[str] = ()
    rule: str | None = None
    layer: int | None = None
    head: int | None = None

    @property
    def where(self) -> str:
        """``last layer, mean over heads``."""
        layer = "last layer" if self.layer is None else f"layer {self.layer}"
        return f"{layer}, mean over heads" if self.head is None else f"{layer}, head {self.head}"


@dataclass(frozen=True)
class Reading:
    """How a model reads one text; ``length`` counts its tokens, special ones included."""

    tokens: Sequence[str]
    special: np.ndarray  # (length,) bool: [CLS], [SEP] and their like
    weights: np.ndarray  # (heads, length, length): a row is a token that looks, and sums to 1
    prediction: int
    probability: float  # of the prediction


def reload_model(run: TrialRun) -> ExportedModel:
    """Download the best-epoch model of a trial and load it with eager attention, which is exact."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = run.download_model("best", Path(folder))
            return load_exported_model(path, attention="eager")
        except (UserError, StoppedError):
            raise
        except Exception as error:  # each kind of broken file raises another type
            raise UserError(f"the model of {run.name} cannot be loaded: {first_line(error)}") from error


def check_view(model: ExportedModel, view: View) -> None:
    """Raise UserError for a layer or head that the encoder does not have."""
    config = model.model.encoder.config
    limits = {"layer": config.num_hidden_layers, "head": config.num_attention_heads}
    for name, limit in limits.items():
        given = getattr(view, name)
        if given is not None and not 1 <= given <= limit:
            raise UserError(
                f"--{name} {given} is not possible: {model.card.model} has {name}s 1 to {limit}"
            )


@torch.no_grad()
def features(model: ExportedModel, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The classifier's inputs, (n, hidden), and its predictions, (n,), for ``texts`` in order."""
    data = model.token_tensors(texts)
    order = data.longest_first(torch.arange(len(data)))
    batches = [data.batch(chunk) for chunk in order.split(_BATCH_SIZE)]
    found = torch.cat([model.model.features(b.input_ids, b.attention_mask) for b in batches])
    found = found[torch.argsort(order)]
    return found.numpy(), model.model.classifier(found).argmax(dim=1).numpy()


@torch.no_grad()
def readings(model: ExportedModel, texts: Sequence[str], view: View) -> Iterator[Reading]:
    """How the model reads each text, in order, in the layer of the view and in its head or all heads."""
    data, tokenizer = model.token_tensors(texts), model.tokenizer
    ends = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    special = [token for token in ends if token is not None]
    layer = -1 if view.layer is None else view.layer - 1
    heads = slice(None) if view.head is None else slice(view.head - 1, view.head)
    size = max(1, _WEIGHTS_AT_ONCE // int(data.lengths.max()) ** 2)
    for chunk in torch.arange(len(data)).split(min(size, _BATCH_SIZE)):
        batch = data.batch(chunk)
        output = model.model.encoder(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_attentions=True
        )
        probabilities = model.model.classifier(output.last_hidden_state[:, 0]).double().softmax(dim=1)
        for row, length in enumerate(data.lengths[chunk].tolist()):  # padding stands on the right
            ids = batch.input_ids[row, :length].tolist()
            yield Reading(
                tokens=[str(tokenizer.decode([token])).strip() or "␣" for token in ids],
                special=np.isin(ids, special),
                weights=output.attentions[layer][row, heads, :length, :length].double().numpy(),
                prediction=int(probabilities[row].argmax()),
                probability=float(probabilities[row].max()),
            )


def text_statistics(weights: np.ndarray, special: np.ndarray) -> dict[str, float]:
    """Where the attention of one text of at least two tokens goes, a mean over tokens and heads.

    ``weights`` are (heads, length, length) without padding, each row summing to 1; ``special`` is
    (length,) bool. The shares are the weight on special tokens, and on the token that gets most.
    Entropy (nats) is taken per head and row, as in Clark et al. 2019 (arXiv:1906.04341); relative
    entropy, divided by ln(length), is 1 for uniform attention.
    """
    received = weights.mean(axis=1)  # (heads, length): by each token, averaged over the tokens that look
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    entropy = float(-(weights * logs).sum(axis=2).mean())
    return {
        "special_token_share": float(received[:, special].sum(axis=1).mean()),
        "top_token_share": float(received.max(axis=1).mean()),
        "entropy": entropy,
        "relative_entropy": entropy / float(np.log(weights.shape[-1])),
    }


def mean_statistics(texts: Iterable[Reading]) -> dict[str, float]:
    """The mean over texts, and their number.

    A text of one token is left out: its attention has no choice.
    """
    each = pd.DataFrame(text_statistics(r.weights, r.special) for r in texts if len(r.tokens) > 1)
    return {"texts": len(each), **{str(name): value for name, value in each.mean().items()}}

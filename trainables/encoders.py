"""The table of encoders, and EncoderForClassification = encoder + dropout + linear."""

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from errors import UserError, first_line
from trainables import tiny_encoders as tiny
from trainables.batches import derive_seed, generator
from trainables.encoder_checks import check_weights
from trainables.own_config import without_foreign_code
from trainables.own_files import check_model_folder

if TYPE_CHECKING:  # importing it needs accelerate, which a served model does not have
    from transformers import PreTrainedModel

HEAD_INIT_STD = 0.02  # BERT's initializer_range


class EncoderForClassification(nn.Module):
    """Encoder -> hidden state of the first token -> dropout -> linear."""

    def __init__(self, config: PreTrainedConfig, classes: int, dropout: float, seed: int) -> None:
        super().__init__()
        self.encoder = _without_pooler(AutoModel.from_config(config, trust_remote_code=False))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, classes)
        nn.init.normal_(self.classifier.weight, std=HEAD_INIT_STD, generator=generator(seed, "head"))
        nn.init.zeros_(self.classifier.bias)

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The classifier's inputs, (batch, hidden), from token ids and mask, (batch, length)."""
        return first_states(self.encoder, input_ids, attention_mask)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits, (batch, classes), from token ids and attention mask, both (batch, length).

        The head computes in its own precision even under autocast: logits in bf16 would be multiples of
        1/64, with exact ties between examples.
        """
        features = self.features(input_ids, attention_mask)
        with torch.autocast(features.device.type, enabled=False):
            return self.classifier(self.dropout(features.to(self.classifier.weight.dtype)))


def _without_pooler(encoder: "PreTrainedModel") -> "PreTrainedModel":
    """Replace the pooler by nothing: unused here, it must not be trained, saved or counted.

    It is not just deleted, because some encoders call it.
    """
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = nn.Identity()
    return encoder


def first_states(encoder: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The hidden state of each text's first token, (batch, hidden), from ids and mask, (batch, length)."""
    return encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]


@dataclass(frozen=True)
class EncoderSpec:
    """A line of the table: where the weights come from, and the architecture without weights.

    ``hub_id`` is None for the tiny encoders: they are built from a config, and their tokenizer is trained
    on the study's own training split.
    """

    hub_id: str | None
    architecture: Callable[..., PreTrainedConfig]  # takes a vocab_size other than the pretrained one
    train_tokenizer: Callable[[Iterable[str]], PreTrainedTokenizerBase] | None = None


@dataclass(frozen=True)
class EncoderAssets:
    """All that a worker needs to build an encoder without a hub: NumPy and bytes, cheap to share."""

    config: dict[str, Any]
    weights: dict[str, np.ndarray]
    tokenizer_files: dict[str, bytes]

    def build(self, classes: int, dropout: float, seed: int) -> EncoderForClassification:
        """The pretrained encoder under a new head that is a function of ``seed``, on CPU in fp32."""
        model = EncoderForClassification(AutoConfig.for_model(**self.config), classes, dropout, seed)
        # torch.tensor copies: the arrays may be read-only memory shared with other processes
        model.encoder.load_state_dict({k: torch.tensor(v) for k, v in self.weights.items()})
        return model

    def tokenizer(self) -> PreTrainedTokenizerBase:
        with tempfile.TemporaryDirectory() as folder:
            self.write_tokenizer(Path(folder))
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def write_tokenizer(self, folder: Path) -> None:
        for name, content in self.tokenizer_files.items():
            (folder / name).write_bytes(content)


ENCODERS: dict[str, EncoderSpec] = {
    "bert-base": EncoderSpec("google-bert/bert-base-uncased", BertConfig),
    "modernbert-base": EncoderSpec("answerdotai/ModernBERT-base", ModernBertConfig),
    "bert-tiny": EncoderSpec(None, tiny.bert_tiny, tiny.train_uncased_tokenizer),
    "modernbert-tiny": EncoderSpec(None, tiny.modernbert_tiny, tiny.train_cased_tokenizer),
}
_DECIDES = re.compile(
    r"config\.json|.*\.safetensors(\.index\.json)?|pytorch_model.*\.bin(\.index\.json)?|tokenizer.*\.json|"
    r"(special_tokens_map|added_tokens)\.json|vocab\..*|merges\.txt|.*\.model"
)
_SPELLINGS = {spec.hub_id: name for name, spec in ENCODERS.items()} | {"bert-base-uncased": "bert-base"}


def canonical_model(model: str) -> str:
    """The short name if the table has one, else the absolute path of a folder or the hub id.

    Raises UserError for a path that is not a folder with a config.json.
    """
    if model in ENCODERS or model in _SPELLINGS:
        return _SPELLINGS.get(model, model)
    folder = os.path.abspath(os.path.expanduser(model))  # noqa: PTH100, PTH111 - these never raise
    if os.path.isfile(os.path.join(folder, "config.json")):  # noqa: PTH113, PTH118
        return folder
    if os.path.exists(folder) or model.startswith((".", "/", "~")):  # noqa: PTH110
        raise UserError(f"model '{model}' is not a folder with a config.json")
    return model


def model_digest(model: str) -> str:
    """16 hex digits of the config, weights and tokenizer in a model's folder; empty for other models.

    They depend on the names and bytes of these files, and not on the place of the folder.
    """
    if not os.path.isabs(model):  # noqa: PTH117 - as canonical_model returns folders
        return ""
    digest = hashlib.sha256()
    for path in sorted(each for each in Path(model).iterdir() if _DECIDES.fullmatch(each.name)):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()[:16]


def load_config(model: str) -> PreTrainedConfig:
    """The config of a canonical model name, as it is stored with the weights."""
    spec = ENCODERS.get(model)
    if spec and spec.hub_id is None:
        return spec.architecture()
    return _from_hub(model, _config_of)


def _config_of(source: str, **kwargs: Any) -> PreTrainedConfig:
    if (folder := Path(source)).is_dir():
        check_model_folder(folder)
    return without_foreign_code(AutoConfig.from_pretrained(source, **kwargs))


def load_architecture(model: str) -> PreTrainedConfig:
    """Like ``load_config``, but models in the table need no hub: the table holds their architecture."""
    spec = ENCODERS.get(model)
    return spec.architecture() if spec else load_config(model)


def load_encoder(model: str, training_texts: Iterable[str]) -> EncoderAssets:
    """Load the pretrained weights and tokenizer, or make those of a tiny encoder."""
    return pack(*load_pretrained(model, training_texts))


def load_pretrained(
    model: str, training_texts: Iterable[str]
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The encoder with its pretrained weights, in fp32 on the CPU, and its tokenizer.

    ``training_texts`` serve only to train the tokenizer of a tiny encoder, whose initial weights are a
    function of the model's name, as if they were downloaded. Raises UserError if the folder lacks a part,
    or its parts do not belong together.
    """
    spec = ENCODERS.get(model)
    if spec and spec.train_tokenizer:
        tokenizer = spec.train_tokenizer(training_texts)
        config = spec.architecture(vocab_size=max(8, len(tokenizer)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(0, "pretrained", model))
            encoder = AutoModel.from_config(config, trust_remote_code=False)
        return _without_pooler(encoder), tokenizer
    config = load_config(model)
    tokenizer = _from_hub(model, AutoTokenizer.from_pretrained)
    with (
        _without_reports(),
        torch.random.fork_rng(devices=[]),
    ):  # loading draws random weights for a pooler that the file lacks
        encoder, loading = _from_hub(
            model,
            AutoModel.from_pretrained,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_weights reports them
        )
    check_weights(model, encoder, loading)
    return _without_pooler(encoder), tokenizer


def pack(encoder: "PreTrainedModel", tokenizer: PreTrainedTokenizerBase) -> EncoderAssets:
    """An encoder and its tokenizer in the form that trials get; the arrays share the encoder's memory."""
    weights = {k: v.numpy() for k, v in encoder.state_dict().items()}
    tokenizer.init_kwargs.pop("auto_map", None)  # names code of the model's own, which is never used
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        parts = list(Path(folder).iterdir())
        if not all(path.is_file() for path in parts):
            raise UserError("the model's tokenizer is several in one: give a model that has one")
        files = {path.name: path.read_bytes() for path in parts}
    return EncoderAssets(encoder.config.to_dict(), weights, files)


@contextmanager
def _without_reports() -> Iterator[None]:
    """Keep Transformers from printing its table on loading; ``check_weights`` reads the same facts."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _from_hub(model: str, load: Callable[..., Any], **kwargs: Any) -> Any:
    spec = ENCODERS.get(model)
    source = spec.hub_id if spec else model
    try:
        # False, not None: None lets Transformers ask the user whether to run a model's own code
        return load(source, trust_remote_code=False, **kwargs)
    except UserError:
        raise
    except Exception as error:  # a different type for every kind of bad folder
        raise UserError(
            f"model '{model}' cannot be loaded ({first_line(error)}): give one of {', '.join(ENCODERS)}, "
            "a hub id while the hub is in reach, or a local folder"
        ) from error


def check_max_length(model: str, max_length: int) -> None:
    """Raise UserError if, by its config, the encoder has fewer positions than ``max_length``."""
    config = load_config(model)
    encoder = outline(model, config)
    limit = getattr(config, "max_position_embeddings", None) or max_length
    if not isinstance(limit, int):
        raise UserError(f"model '{model}' has no number of positions but {limit!r} in its config.json")
    limit -= _positions_of_padding(encoder, limit)
    if 0 < limit < max_length:  # 0 or less: the model has no limit
        raise UserError(
            f"--max-length {max_length} is more than the {limit} positions of {model}: {limit} works"
        )


def _positions_of_padding(encoder: "PreTrainedModel", positions: int) -> int:
    """How many positions no token can have: those up to the position of padding, if there is one."""
    words = encoder.get_input_embeddings()
    tables = [m for m in encoder.modules() if isinstance(m, nn.Embedding) and m is not words]
    taken = [
        m.padding_idx + 1 for m in tables if m.padding_idx is not None and m.num_embeddings == positions
    ]
    return max(taken, default=0)


def count_parameters(model: str) -> int:
    """The number of trainable parameters of the encoder, without the head; allocates no memory for them."""
    named = outline(model, load_config(model)).named_parameters()
    return sum(p.numel() for name, p in named if not name.startswith("pooler."))


def outline(model: str, config: PreTrainedConfig) -> "PreTrainedModel":
    """The encoder of a config, without memory for its weights; UserError if it is not a text encoder."""
    if getattr(config, "is_decoder", False):
        raise UserError(
            f"model '{model}' is a decoder (\"is_decoder\": true in its config.json): the state of its "
            "first token, which the head gets, knows nothing of the tokens after it: give an encoder, such "
            "as bert-base, or write false there if it was trained as one"
        )
    try:
        with torch.device("meta"):
            encoder = AutoModel.from_config(config, trust_remote_code=False)
        _check_reads_text(encoder, config)
        return encoder
    except Exception as error:  # a different type for every kind of impossible config
        raise UserError(f"model '{model}' is no text encoder: {first_line(error)}") from error


def _check_reads_text(encoder: "PreTrainedModel", config: PreTrainedConfig) -> None:
    try:
        words = encoder.get_input_embeddings()
    except NotImplementedError:
        words = None
    if not isinstance(words, nn.Embedding):
        raise ValueError(f"a {config.model_type} has no embedding of a vocabulary")
    if config.is_encoder_decoder:
        raise ValueError(f"a {config.model_type} has a decoder as well")
    if not isinstance(getattr(config, "hidden_size", None), int):
        raise ValueError(f"a {config.model_type} has no hidden_size: it is more than one encoder")

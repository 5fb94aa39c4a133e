"""The tiny encoders of --demo: real architectures, small enough for a CPU, and their tokenizers."""

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

DEMO_VOCABULARY = 4096  # tokens at most; the demo corpus has fewer
_SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


_SHAPE: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}


def bert_tiny(vocab_size: int = DEMO_VOCABULARY) -> PreTrainedConfig:
    """BERT with two layers of width 96."""
    return BertConfig(
        vocab_size=vocab_size,
        intermediate_size=192,
        attention_probs_dropout_prob=0.0,  # its random numbers would take a quarter of the training time
        **_SHAPE,
    )


def modernbert_tiny(vocab_size: int = DEMO_VOCABULARY) -> PreTrainedConfig:
    """ModernBERT with two layers of width 96."""
    return ModernBertConfig(
        vocab_size=vocab_size,
        intermediate_size=128,
        **_SHAPE,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
    )


def train_uncased_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """A tokenizer that lower-cases and splits like BERT's, with byte-pair merges.

    The WordPiece trainer of the tokenizers library numbers its pieces differently in every process,
    and a resumed trial must find the same numbers.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.BertNormalizer()
    return _train(tokenizer, [pre_tokenizers.BertPreTokenizer()], texts)


def train_cased_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """A tokenizer like ModernBERT's: byte-pair merges, letters as they are."""
    return _train(Tokenizer(models.BPE()), [], texts)


def _train(
    tokenizer: Tokenizer, split: list[pre_tokenizers.PreTokenizer], texts: Iterable[str]
) -> PreTrainedTokenizerBase:
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=DEMO_VOCABULARY,
        special_tokens=list(_SPECIAL_TOKENS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL_TOKENS)

"""The look at an encoder before it is trained: is all of it there, and does it read texts as a study needs?

No check knows model families: each reads what loading found, or runs the encoder on a few texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from errors import UserError, first_line
from trainables.batches import pad_token

if TYPE_CHECKING:  # importing it needs accelerate, which a served model does not have
    from transformers import PreTrainedModel

# Changes of a text's features, relative to the largest feature; measured in fp32 with random weights, for
# all model types of Transformers:
PADDING_TOLERANCE = 1e-3  # padding changes them by 1e-5 at most if it is masked, else by more than 1e-3
UNREAD = 1e-5  # the last token changes them by 2e-4 at least if it is read, else not at all
_SHORT = 4  # tokens of a short text, without the special ones
_REMEDY = "give a text encoder, such as bert-base or a folder of that kind"

Features = Callable[
    [Tensor, Tensor], Tensor
]  # token ids and mask, (n, length) -> the head's input, (n, width)


def check_weights(model: str, encoder: nn.Module, loading: dict[str, Any]) -> None:
    """Raise UserError if the file and the config.json do not describe the same encoder.

    ``loading`` is the output of ``from_pretrained``: ``missing_keys``, ``unexpected_keys`` and
    ``mismatched_keys``. Heads in the file are not used, and neither is the pooler.
    """
    remedy = "give a folder whose weights and config.json belong together"
    missing = sorted(name for name in loading["missing_keys"] if "pooler." not in name)
    if missing:
        raise UserError(
            f"the file of model '{model}' lacks {_count(missing)} that its config.json asks for, the first "
            f"'{missing[0]}': they would be random numbers: {remedy}"
        )
    mismatched = sorted(item for item in loading["mismatched_keys"] if "pooler." not in item[0])
    if mismatched:
        name, found, expected = mismatched[0]
        raise UserError(
            f"the file of model '{model}' has {_count(mismatched)} in another shape than its config.json "
            f"asks for, the first '{name}', {tuple(found)} in place of {tuple(expected)}: {remedy}"
        )
    prefix = f"{getattr(encoder, 'base_model_prefix', '')}."
    left_out = sorted(
        name for name in loading["unexpected_keys"] if _is_left_out(encoder, name.removeprefix(prefix))
    )
    if left_out:
        raise UserError(
            f"the file of model '{model}' has {_count(left_out)} that its config.json knows nothing of, "
            f"the first '{left_out[0]}': {remedy}"
        )


def _count(names: Sequence[Any]) -> str:
    return f"{len(names)} weight{'s'[: len(names) != 1]}"


def _is_left_out(encoder: nn.Module, name: str) -> bool:
    """Whether a weight of the file belongs to one of the encoder's own modules, and not to a head.

    Tensors not called ``weight`` or ``bias`` are constants of old versions, such as the position ids.
    """
    *path, last = name.split(".")
    module = encoder
    for depth, part in enumerate(path):
        child = getattr(module, part, None)
        if not isinstance(child, nn.Module):
            return depth > 0 and last in {"weight", "bias"}
        module = child
    return bool(path) and last in module._parameters  # a bias, say, that the config turns off


@dataclass(frozen=True)
class _Tokens:
    """Makes token sequences, with the special tokens at the places that the tokenizer gives them."""

    before: list[int]
    after: list[int]
    ordinary: list[int]  # ids of different tokens that are not special
    pad: int

    def text(self, *body: int) -> list[int]:
        return [*self.before, *body, *self.after]

    def of_length(self, length: int) -> list[int]:
        room = max(0, length - len(self.before) - len(self.after))
        return self.text(*islice(cycle(self.ordinary), room))[:length]


def check_reading(
    model: str,
    encoder: "PreTrainedModel",
    features: Features,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> None:
    """Run the encoder on a few texts; UserError if a study of it would fail or mean nothing.

    ``features`` computes the head's inputs with ``encoder``, which is left in eval mode. Every token of
    the tokenizer must have an embedding, ``max_length`` tokens must fit, and the head's inputs must depend
    on more than the first token, but not on padding.
    """
    vocabulary = tokenizer.get_vocab()
    tokens = _tokens(model, tokenizer, vocabulary)
    encoder.eval()

    def run(*texts: Sequence[int]) -> Tensor:
        return _checked(features(*_batch(texts, tokens.pad)), len(texts), encoder.config.hidden_size)

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        start, last = tokens.ordinary[:-1], tokens.ordinary[-1]
        short = tokens.text(*start, last)
        try:
            run(tokens.text(last))
            alone = run(short)
        except Exception as error:  # a different type for every kind of model
            raise UserError(_cannot_read(model, encoder, tokenizer, error)) from error
        _check_largest_token(model, vocabulary, lambda token: run(tokens.text(*start, token)))
        check_first_state(model, features, short, tokens.text(*start, start[0]))
        padded = _beside_the_longest(model, run, tokens, short, max_length)
        if (leaked := _difference(padded, alone[0])) > PADDING_TOLERANCE:
            raise UserError(
                f"model '{model}' reads the padding: beside one of {max_length} tokens a text gets other "
                f"features than alone (by {leaked:.1g} of their size), so accuracy would depend on the "
                f"batches: {_REMEDY}"
            )


def check_first_state(
    model: str,
    features: Features,
    text: Sequence[int],
    other: Sequence[int],
    device: str | torch.device = "cpu",
) -> None:
    """Raise UserError if two texts that differ only in the last token give the head the same inputs."""
    ids, mask = _batch([text, other], pad=0)
    try:
        one, two = features(ids.to(device), mask.to(device))
    except Exception as error:  # a different type for every kind of model
        raise UserError(
            f"model '{model}' cannot read two texts ({first_line(error)}): {_REMEDY}"
        ) from error
    if _difference(one, two) < UNREAD:
        raise UserError(
            f"model '{model}' reads like a decoder: the state of its first token, which the head gets, "
            f"knows nothing of the tokens after it: {_REMEDY}"
        )


def _tokens(model: str, tokenizer: PreTrainedTokenizerBase, vocabulary: dict[str, int]) -> _Tokens:
    special = set(tokenizer.all_special_ids)
    ids = sorted(token for token in set(vocabulary.values()) if token not in special)
    if len(ids) < 2:
        raise UserError(
            f"the tokenizer of model '{model}' knows no word: put the files of its own into its folder, "
            "such as tokenizer.json, vocab.txt or spm.model"
        )
    spread = ids[len(ids) // 4 :: max(1, len(ids) // 16)]  # a tokenizer too large has its excess at the end
    ordinary = spread[:_SHORT] if len(spread) >= _SHORT else ids[:_SHORT]
    word = tokenizer.decode([ordinary[0]])
    whole, body = (tokenizer(word, add_special_tokens=add)["input_ids"] for add in (True, False))
    starts = (i for i in range(len(whole) - len(body) + 1) if whole[i : i + len(body)] == body)
    start = next(starts, len(whole))
    return _Tokens(whole[:start], whole[start + len(body) :], ordinary, pad_token(tokenizer))


def _batch(texts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, (n, longest) int64 each."""
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[pad] * (longest - len(text))] for text in texts])
    return ids, torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])


def _checked(features: Tensor, texts: int, width: int) -> Tensor:
    if features.shape != (texts, width):
        raise ValueError(f"its states are {tuple(features.shape)} where the head reads {(texts, width)}")
    if not features.isfinite().all():
        raise ValueError("its states are not finite numbers")
    return features


def _difference(features: Tensor, others: Tensor) -> float:
    """The largest difference of two texts' features, (width,) each, relative to the largest feature."""
    scale = torch.maximum(features.abs().max(), others.abs().max()).clamp_min(
        torch.finfo(features.dtype).tiny
    )
    return float((features - others).abs().max() / scale)


def _cannot_read(
    model: str, encoder: "PreTrainedModel", tokenizer: PreTrainedTokenizerBase, error: Exception
) -> str:
    pad, words = tokenizer.pad_token_id, first_line(error)
    remedy = _REMEDY
    if pad is not None and getattr(encoder.config, "pad_token_id", pad) is None and "None" in words:
        remedy = f'put "pad_token_id": {pad}, as in its tokenizer, into its config.json'
    return f"model '{model}' cannot read a short text ({words}): {remedy}"


def _check_largest_token(model: str, vocabulary: dict[str, int], run: Callable[[int], Tensor]) -> None:
    word, largest = max(vocabulary.items(), key=lambda item: item[1])
    try:
        run(largest)
    except Exception as error:
        raise UserError(
            f"the tokenizer of model '{model}' has a token '{word}' with id {largest}, which the embedding "
            f"lacks ({first_line(error)}): put the model's own tokenizer into its folder, or save the "
            f"model after resize_token_embeddings({largest + 1})"
        ) from error


def _beside_the_longest(
    model: str, run: Callable[..., Tensor], tokens: _Tokens, short: list[int], max_length: int
) -> Tensor:
    """The features of ``short`` padded to ``max_length`` tokens, (width,)."""
    try:
        return run(tokens.of_length(max_length), short)[1]
    except Exception as error:
        longest = _longest(lambda length: run(tokens.of_length(length)), len(short), max_length)
        if longest == max_length:
            raise UserError(
                f"model '{model}' cannot read texts of different lengths together ({first_line(error)}): "
                f"{_REMEDY}"
            ) from error
        raise UserError(
            f"--max-length {max_length} is more than model '{model}' can read ({first_line(error)}): "
            f"{longest} works"
        ) from error


def _longest(run: Callable[[int], Any], works: int, length: int) -> int:
    """The largest number of tokens up to ``length`` that ``run`` accepts, by halving, from ``works`` on."""

    def can_run(tokens: int) -> bool:
        try:
            run(tokens)
        except Exception:
            return False
        return True

    if works >= length or can_run(length):
        return length
    fails = length
    while fails - works > 1:
        middle = (works + fails) // 2
        works, fails = (middle, fails) if can_run(middle) else (works, middle)
    return works

import itertools

import numpy as np
import pytest
import torch

from tests.helpers import CPU, TINY_MODELS
from trainables.batches import TokenArrays, TokenTensors, derive_seed, epoch_windows, pad_token, tokenize

PAD = 99


def ragged(*texts):
    lengths = [len(text) for text in texts]
    return TokenArrays(
        tokens=np.array([token for text in texts for token in text], np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=np.arange(len(texts)) % 2,
        row_ids=np.arange(len(texts)),
    )


@pytest.fixture
def data():
    return TokenTensors(ragged([1, 2], [3, 4, 5, 6], [7], [8, 9, 10], [11, 12]), PAD, CPU)


def test_windows_cover_every_example_once_and_the_last_may_be_smaller():
    for target, sizes in ((64, [64, 64, 64, 8]), (100, [100, 100]), (999, [200])):
        windows = list(epoch_windows(200, target, seed=1, epoch=1))
        assert [len(window) for window in windows] == sizes
        assert sorted(torch.cat(windows).tolist()) == list(range(200))


def order(target=64, seed=1, epoch=1):
    return torch.cat(list(epoch_windows(200, target, seed, epoch))).tolist()


def test_order_is_seeded_differs_per_epoch_and_seed_and_not_with_the_target_batch_size():
    assert order(target=1) == order(target=7) == order(target=256) == order()
    assert len({tuple(order(seed=seed, epoch=epoch)) for seed in (1, 2) for epoch in (1, 2)}) == 4


def test_no_two_purposes_share_a_seed():
    numbers = range(25)
    seeds = [derive_seed(seed, "dropout", *place) for seed, *place in itertools.product(*[numbers] * 3)]
    seeds += [derive_seed(*each) for each in itertools.product(numbers, ("order", "head"), numbers)]
    assert len(set(seeds)) == len(seeds) == 25**3 + 2 * 25**2
    assert 0 <= min(seeds) < max(seeds) < 2**63  # what a generator takes


def test_batch_is_padded_to_its_longest_example(data):
    batch = data.batch(torch.tensor([0, 3, 2]))
    assert batch.input_ids.tolist() == [[1, 2, PAD], [8, 9, 10], [7, PAD, PAD]]
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [0, 1, 0]
    assert {batch.input_ids.dtype, batch.attention_mask.dtype, batch.labels.dtype} == {torch.int64}
    last = data.batch(torch.tensor([4, 1]))  # nothing follows it in the arrays
    assert last.input_ids.tolist() == [[11, 12, PAD, PAD], [3, 4, 5, 6]]
    assert last.attention_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_batches_run_from_longest_to_shortest_and_the_last_is_ragged(data):
    batches = data.batches(torch.tensor([2, 4, 1, 0, 3]), size=2)
    assert [batch.input_ids.tolist() for batch in batches] == [
        [[3, 4, 5, 6], [8, 9, 10, PAD]],
        [[11, 12], [1, 2]],  # of equal length: in the order given
        [[7]],
    ]
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.cat([batch.labels for batch in batches]).tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("model", TINY_MODELS)
def test_texts_are_tokenised_with_special_tokens_and_truncated(assets, model):
    tokenizer = assets[model].encoder.tokenizer()
    texts = ["the plot was dull .", "the cast was superb . " * 20, "x"]
    arrays = tokenize(texts, np.array([0, 1, 0]), np.array([5, 6, 7]), tokenizer, max_length=16)
    rows = np.split(arrays.tokens, arrays.offsets[1:-1])
    assert [len(row) for row in rows] == [7, 16, 3]
    assert {(row[0], row[-1]) for row in rows} == {(tokenizer.cls_token_id, tokenizer.sep_token_id)}
    assert len(arrays) == 3
    assert arrays.row_ids.tolist() == [5, 6, 7]


def test_a_tokenizer_without_a_pad_token_pads_with_0(assets):
    tokenizer = assets["bert-tiny"].encoder.tokenizer()
    tokenizer.pad_token = "[MASK]"
    assert pad_token(tokenizer) == tokenizer.mask_token_id != 0
    tokenizer.pad_token = None
    assert pad_token(tokenizer) == 0

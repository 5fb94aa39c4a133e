import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tests.helpers import CPU, TINY_MODELS, assert_identical, refusal
from trainables.accumulation import autocast
from trainables.batches import TokenTensors
from trainables.encoders import (
    canonical_model,
    count_parameters,
    load_architecture,
    load_config,
    load_encoder,
)
from trainables.tiny_encoders import DEMO_VOCABULARY

TEXT = "the plot was not superb , but the villain was witty ."


def test_every_spelling_of_a_model_becomes_its_one_name(encoder_folder):
    for name in ("bert-base", "bert-base-uncased", "google-bert/bert-base-uncased"):
        assert canonical_model(name) == "bert-base"
    for name in ("modernbert-base", "answerdotai/ModernBERT-base"):
        assert canonical_model(name) == "modernbert-base"
    for name in ("bert-tiny", "microsoft/MiniLM-L12-H384-uncased", str(encoder_folder)):
        assert canonical_model(name) == name
    assert canonical_model(f"{encoder_folder}/") == str(encoder_folder)


def test_a_folder_that_is_missing_or_has_no_config_is_refused():
    for place in ("./absent", "/absent/encoder", "~/absent", "~no-such-user/encoder", "/tmp"):
        assert f"'{place}' is not a folder with a config.json" in refusal(canonical_model, place)


@pytest.mark.parametrize("model", ["nobody/no-such-encoder", "bert-base"])
def test_a_model_out_of_reach_is_refused_with_what_can_be_had(model):
    for reason in (refusal(load_config, model), refusal(load_encoder, model, [])):
        assert f"model '{model}' cannot be loaded" in reason
        assert "bert-tiny" in reason


@pytest.mark.parametrize("model", TINY_MODELS)
def test_a_tiny_encoder_is_a_function_of_its_name_and_its_texts(assets, splits, model):
    torch.manual_seed(99)  # the state of the global generator must not matter
    again, first = load_encoder(model, splits.train.texts), assets[model].encoder
    assert (again.config, again.tokenizer_files) == (first.config, first.tokenizer_files)
    assert again.weights.keys() == first.weights.keys()
    assert all(np.array_equal(again.weights[name], array) for name, array in first.weights.items())


@pytest.mark.parametrize("model", TINY_MODELS)
def test_tokenizer_is_the_same_after_it_has_been_files(assets, model, tmp_path):
    encoder = assets[model].encoder
    tokenizer = encoder.tokenizer()
    ids = tokenizer(TEXT)["input_ids"]
    encoder.write_tokenizer(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXT)["input_ids"] == ids
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.pad_token_id == 0
    assert tokenizer.unk_token_id not in ids
    for text in (TEXT, "unicode – 映画 🎬!"):
        decoded = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
        assert decoded.replace(" ", "") == text.replace(" ", "")
    assert encoder.config["vocab_size"] == len(tokenizer) <= DEMO_VOCABULARY


@pytest.mark.parametrize("model", TINY_MODELS)
def test_parameters_are_counted_as_built_up_to_the_vocabulary(assets, model):
    encoder = assets[model].encoder
    built = encoder.build(classes=2, dropout=0.1, seed=0)
    real = sum(p.numel() for p in built.encoder.parameters())
    missing_words = DEMO_VOCABULARY - encoder.config["vocab_size"]
    assert count_parameters(model) == real + missing_words * encoder.config["hidden_size"]


def test_a_local_folder_gives_its_own_weights_without_the_pooler(encoder_folder):
    encoder = load_encoder(str(encoder_folder), [])
    stored = AutoModel.from_pretrained(encoder_folder).state_dict()
    expected = {name: tensor for name, tensor in stored.items() if not name.startswith("pooler.")}
    assert len(expected) < len(stored)
    model = encoder.build(classes=3, dropout=0.0, seed=0)
    assert_identical(dict(model.encoder.state_dict()), expected)
    assert model.classifier.out_features == 3
    assert sum(p.numel() for p in model.encoder.parameters()) == count_parameters(str(encoder_folder))


@pytest.mark.parametrize(
    ("model", "published"), [("bert-base", 108_891_648), ("modernbert-base", 149_014_272)]
)
def test_the_architecture_of_a_base_model_needs_no_hub(model, published):
    with torch.device("meta"):
        encoder = AutoModel.from_config(load_architecture(model))
    parameters = sum(p.numel() for n, p in encoder.named_parameters() if not n.startswith("pooler."))
    assert parameters == published


def test_logits_keep_their_precision_under_autocast(assets):
    """In bf16 they would come in steps of 1/64, with exact ties."""
    model = assets["bert-tiny"].encoder.build(classes=2, dropout=0.0, seed=0)
    torch.nn.init.constant_(model.classifier.bias, 3.0)
    data = TokenTensors(assets["bert-tiny"].val, 0, CPU)
    batch = data.batch(torch.arange(len(data)))
    with torch.no_grad(), autocast(CPU, "bf16"):
        logits = model(batch.input_ids, batch.attention_mask)
    assert logits.dtype == torch.float32
    assert ((logits * 64).frac() != 0).double().mean() > 0.9
    assert len(logits[:, 0].unique()) > 0.9 * len(data)

"""Models shaped like those of public bug reports: each trains, or one line says why not."""

import re

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, DebertaV2Config, DebertaV2Model

from sweep.options import SweepOptions
from sweep.plan import make_plan
from tests.helpers import CPU, assert_identical, refusal, refused_command, tiny_config
from tests.hostile.families import write_small_model
from tests.hostile.models import change
from trainables.assets import prepare_assets
from trainables.encoders import check_max_length, count_parameters, load_encoder
from trainables.trial import Trial

DECODER = "the state of its first token, which the head gets, knows nothing of the tokens after it"
TEXTS = ["the plot was dull", "a fine film", "a superb cast, and a witty script!"]


@pytest.fixture(scope="module")
def tiny():
    """A tiny encoder, whose tokenizer all of them get."""
    return load_encoder("bert-tiny", TEXTS)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "model"


@pytest.fixture
def prepare(splits):
    def prepare(model, max_length=64):
        return prepare_assets(tiny_config(model=str(model), max_length=max_length), splits).trial

    return prepare


def train_loss(folder, assets):
    trial = Trial(tiny_config(model=str(folder), max_length=64, epochs=1), assets, CPU)
    return trial.run_to_evaluation()["train_loss"]


def rewrite(folder, change_weights):
    weights = load_file(folder / "model.safetensors")
    save_file(change_weights(weights), folder / "model.safetensors", {"format": "pt"})


UNKNOWN = "weights that its config.json knows nothing of"
OTHER = "weights in another shape"
BIASED = {"attention_bias": True}
# the type, its config, what is changed in the config when the weights are written, and the refusal
REFUSED = {
    "gpt2": ("gpt2", {}, {}, DECODER),
    "llama": ("llama", {}, {}, DECODER),
    "qwen2": ("qwen2", {"vocab_size": 500}, {}, DECODER),  # its tokenizer adds tokens of its own
    "bert as decoder": ("bert", {"is_decoder": True}, {}, DECODER),
    "padding leaks": ("fnet", {}, {}, "reads the padding"),
    "too few layers": ("bert", {}, {"num_hidden_layers": 4}, "lacks 32 weights.*'encoder.layer.2.att"),
    "too many": ("bert", {}, {"num_hidden_layers": 1}, f"has 16 {UNKNOWN}.*'encoder.layer.1.att"),
    "biases": (
        "modernbert",
        BIASED,
        {"attention_bias": False},
        f"has 4 {UNKNOWN}.*'layers.0.attn.Wo.bias'",
    ),
    "shape": (
        "bert",
        {},
        {"intermediate_size": 128},
        f"has 6 {OTHER}.*dense.bias', .64,. in place of .128,.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_cannot_be_trained_as_it_is_is_refused(folder, tiny, prepare, case):
    model_type, written, changed, words = REFUSED[case]
    write_small_model(folder, model_type, tiny, **written)
    change(folder, **changed)
    assert re.search(words, refusal(prepare, folder))


def test_a_bert_that_says_that_it_is_a_decoder_is_refused_by_every_command(folder, tiny):
    write_small_model(folder, "bert", tiny, is_decoder=True)
    options = SweepOptions(space="fixed_lr", demo=True, models=[str(folder)], dry_run=True)
    for reason in (
        refusal(make_plan, options, False),
        refused_command(["verify", "--models", str(folder)]),
    ):
        assert '"is_decoder": true' in reason
        assert DECODER in reason


def test_heads_and_leftovers_of_earlier_versions_are_no_fault(folder, tiny, capfd):
    """A file as the hub has them: the weights of a head, no pooler, and numbers of positions."""
    write_small_model(folder, "bert", tiny)
    config = AutoConfig.from_pretrained(folder)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    leftover = {"bert.embeddings.position_ids": torch.arange(160)[None]}
    rewrite(folder, lambda weights: weights | leftover)
    stored = load_file(folder / "model.safetensors")
    own = {k.removeprefix("bert."): v for k, v in stored.items() if k.startswith("bert.")}
    capfd.readouterr()
    loaded = load_encoder(str(folder), []).weights
    assert "UNEXPECTED" not in capfd.readouterr().err  # a table of Transformers' own
    del own["embeddings.position_ids"]
    assert_identical({name: torch.from_numpy(array) for name, array in loaded.items()}, own)


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(folder, tiny, prepare):
    write_small_model(folder, "bert", tiny)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = len(tokenizer)
    tokenizer.add_tokens([f"extra{number}" for number in range(5)])
    tokenizer.save_pretrained(folder)
    reason = refusal(prepare, folder)
    assert f"a token 'extra4' with id {size + 4}" in reason
    assert f"resize_token_embeddings({size + 5})" in reason


KIN = "roberta xlm-roberta camembert mpnet xmod longformer data2vec-text roberta-prelayernorm".split()
POSITIONS = [("roberta", 0, 129), ("roberta", 7, 122), ("bert", 0, 130), ("bert", 1, 130)]


@pytest.mark.parametrize("case", [*POSITIONS, *((kin, 1, 128) for kin in KIN)])
def test_a_roberta_and_its_kin_lose_the_positions_up_to_their_padding(folder, tiny, prepare, case):
    """RoBERTa as published has pad token 1, and 514 positions for 512 tokens."""
    model_type, pad, works = case
    write_small_model(folder, model_type, tiny, max_position_embeddings=130, pad_token_id=pad)
    check_max_length(str(folder), works)
    prepare(folder, max_length=works)  # it runs
    assert f"{works} works" in refusal(check_max_length, str(folder), works + 1)
    assert f"{works} works" in refusal(prepare, folder, max_length=works + 1)


@pytest.mark.parametrize("length", [161, 1000])
def test_the_longest_that_works_is_found_by_running(folder, tiny, prepare, length):
    write_small_model(folder, "bert", tiny)
    reason = refusal(prepare, folder, max_length=length)
    assert f"--max-length {length} is more than" in reason
    assert "160 works" in reason
    prepare(folder, max_length=160)


def test_roberta_without_a_pad_token_is_one_line_that_says_what_it_is(folder, tiny, prepare):
    write_small_model(folder, "roberta", tiny)
    change(folder, pad_token_id=None)
    count_parameters(str(folder))
    assert 'put "pad_token_id": 0' in refusal(prepare, folder)
    change(folder, pad_token_id=0)
    prepare(folder)


@pytest.mark.parametrize("model_type", ["xlnet", "squeezebert"])  # no limit; a pooler that it calls
def test_what_looks_odd_in_a_config_and_is_not_trains(folder, tiny, prepare, model_type):
    write_small_model(folder, model_type, tiny)
    check_max_length(str(folder), 5000) if model_type == "xlnet" else None
    assert train_loss(folder, prepare(folder)) > 0


def test_padding_that_leaks_is_refused(folder, tiny, prepare):
    write_small_model(folder, "fnet", tiny)
    assert "reads the padding" in refusal(prepare, folder)


def test_weights_that_are_no_numbers_are_refused(folder, tiny, prepare):
    write_small_model(folder, "bert", tiny)
    rewrite(folder, lambda weights: {name: tensor * torch.nan for name, tensor in weights.items()})
    assert "not finite" in refusal(prepare, folder)


def test_a_folder_without_a_tokenizer_is_one_line(folder, tiny, prepare):
    write_small_model(folder, "bert", tiny)
    for path in folder.glob("*token*"):
        path.unlink()
    assert "knows no word" in refusal(prepare, folder)


def test_the_look_leaves_no_trace(folder, tiny, prepare):
    """Neither in the generators nor in the weights."""
    write_small_model(folder, "bert", tiny)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    weights = prepare(folder).encoder.weights
    assert_identical(torch.get_rng_state(), before)
    stored = {k: v for k, v in load_file(folder / "model.safetensors").items() if "pooler." not in k}
    assert_identical({name: torch.from_numpy(array) for name, array in weights.items()}, stored)


def test_a_deberta_with_a_sentencepiece_model_alone_trains(folder, splits, prepare):
    """As in the folders of microsoft/deberta-v3: spm.model, and no tokenizer.json."""
    folder.mkdir()
    pieces = {"pad": "[PAD]", "bos": "[CLS]", "eos": "[SEP]", "unk": "[UNK]"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(splits.train.texts),
        model_prefix=str(folder / "spm"),
        vocab_size=200,
        hard_vocab_limit=False,
        minloglevel=2,
        **{f"{name}_id": number for number, name in enumerate(pieces)},
        **{f"{name}_piece": piece for name, piece in pieces.items()},
    )
    (folder / "spm.vocab").unlink()
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    DebertaV2Model(DebertaV2Config(vocab_size=256, **sizes)).save_pretrained(folder)
    tokenizer = load_encoder(str(folder), []).tokenizer()
    ids = tokenizer(TEXTS[0])["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXTS[0]
    assert train_loss(folder, prepare(folder)) > 0

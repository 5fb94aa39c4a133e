"""Every type of model that Transformers knows: it trains, or one line says why not."""

import pytest

from errors import UserError
from tests.helpers import CPU, tiny_config
from tests.hostile.families import types, write_small_model
from trainables.assets import prepare_assets
from trainables.encoders import check_max_length, count_parameters, load_encoder
from trainables.trial import Trial

TEXTS = ["the plot was dull", "a fine film"]
NOT_SMALL = "not built small"
TRAINS = "albert bert deberta-v2 distilbert electra modernbert mpnet roberta xlnet".split()


def outcome(folder, model_type, words, splits):
    """``trains``, the one line that refuses it, or NOT_SMALL and why; anything else is raised."""
    config = tiny_config(model=str(folder), max_length=48, epochs=1)
    try:
        write_small_model(folder, model_type, words)
    except Exception as error:  # a different type for every kind of model
        return _without_weights(folder, error)
    try:
        check_max_length(config.model, config.max_length)
        count_parameters(config.model)
        assets = prepare_assets(config, splits).trial
    except UserError as error:
        return str(error)
    report = Trial(config, assets, CPU).run_to_evaluation()  # raises where a loss is not finite
    assert report["train_loss"] > 0
    return "trains"


def _without_weights(folder, error):
    """The plan needs no weights; where it does not refuse the type, its small form was to blame."""
    reason = f"{NOT_SMALL}: {type(error).__name__}"
    if not (folder / "config.json").exists():
        return reason
    try:
        count_parameters(str(folder))
    except UserError as refused:
        told = ("has no embedding of a vocabulary", "has a decoder as well", "has no hidden_size")
        return str(refused) if any(words in str(refused) for words in told) else reason
    return reason


@pytest.fixture(scope="module")
def words():
    return load_encoder("bert-tiny", TEXTS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the models' own
@pytest.mark.parametrize("model_type", types())
def test_a_model_of_any_type_trains_or_is_refused_in_one_line(tmp_path, words, splits, model_type):
    found = outcome(tmp_path / "model", model_type, words, splits)
    assert "\n" not in found
    if found.startswith(NOT_SMALL):
        pytest.skip(found)
    assert (found == "trains") or model_type not in TRAINS

"""The folder that MLflow keeps of a trained classifier, and what it needs to be loaded."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from tests.helpers import TINY_MODELS, export, tiny_config, trained
from trainables.evaluation import evaluate
from trainables.exported_model import _load_pyfunc, export_model, load_exported_model

NOT_NEEDED = ("accelerate", "ray", "mlflow", "datasets", "sklearn", "search_spaces", "pydantic")


@pytest.fixture(scope="module", params=TINY_MODELS)
def exported(request, assets, splits, tmp_path_factory):
    """A trained trial, the folder that its weights were exported to, and its val texts."""
    model = request.param
    trial = trained(tiny_config(model=model, epochs=1), assets[model])
    folder = export(trial, assets[model], splits.label_names, tmp_path_factory.mktemp("trial"))
    return trial, folder, splits.val.texts


def test_it_predicts_what_the_trial_predicts_and_knows_where_it_came_from(exported):
    trial, folder, texts = exported
    expected = evaluate(trial.model, trial.val, "fp32")
    model = load_exported_model(folder)
    predicted = model.predict(texts)
    assert list(predicted.columns) == ["label", "score"]
    names = np.array(["negative", "positive"])
    assert predicted["label"].tolist() == names[expected.predictions].tolist()
    np.testing.assert_allclose(predicted["score"], expected.probabilities.max(axis=1), rtol=0, atol=1e-6)
    assert (model.card.trial_hash, model.card.label_names) == (trial.config.trial_hash, tuple(names))
    assert (model.card.epoch, model.card.val_acc) == (1, trial.history[0]["val_acc"])


def test_it_takes_a_text_a_list_and_a_column(exported):
    _, folder, texts = exported
    model = _load_pyfunc(str(folder))  # as MLflow's generic Python flavour does
    several = model.predict(texts[:5])
    assert len(several) == 5
    for same in (
        pd.DataFrame({"review": texts[:5]}),
        pd.Series(texts[:5], index=range(7, 12)),
        np.array(texts[:5]),
        tuple(texts[:5]),
    ):
        pd.testing.assert_frame_equal(model.predict(same), several)
    one = model.predict(texts[0])
    assert len(one) == 1
    assert one["label"][0] == several["label"][0]
    assert one["score"][0] == pytest.approx(several["score"][0], abs=1e-6)
    assert list(model.predict([]).columns) == ["label", "score"]
    with pytest.raises(ValueError, match="a text is needed, not 7"):
        model.predict([texts[0], 7])


def test_nothing_in_the_folder_is_unpickled_and_nothing_is_overwritten(exported, assets):
    trial, folder, _ = exported
    assert {path.suffix for path in folder.iterdir()} <= {".safetensors", ".json", ".txt", ".jinja"}
    with pytest.raises(FileExistsError):
        export_model(folder, folder / "model.safetensors", assets[trial.config.model].encoder, None)


def test_the_code_that_travels_with_it_imports_no_more_than_it_needs():
    code = f"import sys, trainables.exported_model; print([m for m in {NOT_NEEDED} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

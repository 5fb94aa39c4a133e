import contextlib
import io
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import tune_main
from errors import UserError
from search_spaces import TrialConfig
from trainables.trial import Trial, best_evaluation

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
TINY_MODELS = ("bert-tiny", "modernbert-tiny")
CPU = torch.device("cpu")
METRICS = ("train_loss", "train_acc", "val_loss", "val_acc")
_TIMES = {"examples_per_second", "epoch_seconds", "reported_at"}


def make_config(**overrides):
    required = {"model": "bert-tiny", "target_batch_size": 64, "scaling_rule": "fixed"}
    return TrialConfig(**required | overrides)


def tiny_config(**overrides):
    """200 train and 60 val reviews: at a target batch size of 64, three full windows and a tail of 8."""
    tiny = {"dataset": "demo-reviews", "train_size": 200, "eval_size": 60, "base_lr": 1e-3}
    return make_config(**tiny | {"physical_batch_size": 16, "epochs": 2} | overrides)


def without_dropout(assets):
    """BERT's own dropout, which TrialConfig.dropout does not reach, turned off as well."""
    config = assets.encoder.config | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return replace(assets, encoder=replace(assets.encoder, config=config))


def train(trial):
    while not trial.is_finished:
        trial.run_to_evaluation()
    return trial


def trained(config, assets):
    return train(Trial(config, assets, CPU))


def export(trial, assets, label_names, folder):
    """Save a trial, and export its best epoch as the command does. Returns the folder of the model."""
    # here, because tests.limited_memory wants a process with little memory of its own to hand out
    from trainables.checkpoint import weight_files
    from trainables.exported_model import ClassifierCard, export_model

    folder.mkdir(exist_ok=True)
    trial.save(folder)
    config, best = trial.config, best_evaluation(trial.history)
    card = ClassifierCard(
        model=config.model_name,
        label_names=label_names,
        max_length=config.max_length,
        dropout=config.head_dropout,
        trial_hash=config.trial_hash,
        epoch=trial.history[best - 1]["epoch"],
        val_acc=trial.history[best - 1]["val_acc"],
    )
    export_model(folder / "classifier", weight_files(folder)["best"], assets.encoder, card)
    return folder / "classifier"


def learnt(trial):
    """The history without the times, as it looks once it has been through JSON."""
    reports = json.loads(json.dumps(trial.history))
    return [{k: v for k, v in report.items() if k not in _TIMES} for report in reports]


def weights(trial):
    return {k: v.detach().clone() for k, v in trial.model.state_dict().items()}


def assert_identical(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def largest_difference(actual, expected):
    assert actual.keys() == expected.keys()
    return max(float((actual[k] - expected[k]).abs().max()) for k in actual)


def message(raised):
    """The one line that the user sees."""
    text = str(raised.value)
    assert "\n" not in text
    return text


def refusal(call, *arguments, **keywords):
    """The one line that the user sees if this is refused."""
    with pytest.raises(UserError) as raised:
        call(*arguments, **keywords)
    return message(raised)


def outcome(argv, encoding="utf-8"):
    """Exit code, standard output and standard error of a command in this process."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            code = tune_main.main(argv)
        except SystemExit as stop:  # of argparse
            code = stop.code
    return code, *(stream.buffer.getvalue().decode(encoding) for stream in streams)


def refused_command(argv):
    """The one line with which the command refuses these words, before it says anything else."""
    code, out, err = outcome(argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    return err


@contextlib.contextmanager
def web_server(handler=BaseHTTPRequestHandler, host="127.0.0.1"):
    """A server in a thread of its own."""
    with ThreadingHTTPServer((host, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def needs_shared(name):
    folder = SHARED / name
    return pytest.mark.skipif(not folder.is_dir(), reason=f"{folder} is absent")

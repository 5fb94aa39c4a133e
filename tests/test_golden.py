"""Numbers that must not move: the first two trials of the demo, on any CPU in fp32."""

import pytest

from sweep.options import SweepOptions
from sweep.plan import make_plan
from tests.helpers import trained
from trainables.assets import prepare_assets

GOLDEN = {
    64: {
        "val_acc": [0.61, 0.7325, 0.735, 0.7575, 0.7575],
        "train_loss": [0.6843359017, 0.5320881975, 0.4796306056, 0.4716759384, 0.4492767745],
        "val_loss": [0.6362667581, 0.5163064558, 0.5204429224, 0.5059056595, 0.5074405611],
    },
    256: {
        "val_acc": [0.4875, 0.4875, 0.665, 0.7, 0.7425],
        "train_loss": [0.6989074516, 0.6937261915, 0.6697981048, 0.5752350664, 0.5000662744],
        "val_loss": [0.6928433061, 0.6908376804, 0.6211223817, 0.5503281738, 0.5271495317],
    },
}


@pytest.fixture(scope="module")
def demo():
    options = SweepOptions(space="batch_lr_grid", demo=True, precision="fp32")
    plan = make_plan(options, bf16_available=False)
    first, second = list(plan.plan.configs.values())[:2]
    assets = prepare_assets(first, plan.splits).trial
    return {config.target_batch_size: trained(config, assets).history for config in (first, second)}


@pytest.mark.parametrize("target_batch_size", GOLDEN)
def test_the_demo_learns_what_it_always_learnt(demo, target_batch_size):
    expected = GOLDEN[target_batch_size]
    history = demo[target_batch_size]
    assert [report["val_acc"] for report in history] == expected["val_acc"]
    for loss in ("train_loss", "val_loss"):
        assert [report[loss] for report in history] == pytest.approx(expected[loss], rel=1e-5)

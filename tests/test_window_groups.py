import pytest
import torch
from torch import nn

from tests.helpers import make_config
from trainables.window_groups import GradientGroups, grouped_cut


def test_windows_are_cut_as_they_always_were():
    """Which example meets which dropout mask decides every number of a study."""
    cuts = {(1024, 64): (2, 64), (64, 16): (2, 16), (48, 16): (3, 16), (80, 16): (5, 16), (17, 1): (17, 1)}
    cuts |= {(1024, 512): (2, 512), (192, 96): (2, 96)}
    cuts |= {(1024, 1024): (2, 64), (1024, 768): (2, 64), (256, 1024): (2, 64), (128, 128): (2, 64)}
    cuts |= {(64, 1024): (1, 1024), (64, 64): (1, 64), (64, 24): (1, 24), (8, 16): (1, 16)}
    for (examples, physical), cut in cuts.items():
        assert grouped_cut(examples, physical) == cut
    assert [n for n in range(40) if make_config().cuts_in_groups(n)] == [0, 16, 32]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_gradient_is_summed_group_by_group(groups):
    """1 + 2⁻²⁴ is 1 in float32, 2⁻²⁴ + 2⁻²⁴ is kept: the order of the sum shows."""
    weight, unused = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    summed = GradientGroups([weight, unused], groups, 4)
    for each in (1.0, 2**-24, 2**-24, 2**-24):
        (weight * each).sum().backward()
        summed.after_backward()
    expected = {1: 1.0, 2: 1.0 + 2**-23, 4: 1.0}[groups]
    assert weight.grad.tolist() == [expected]
    assert unused.grad is None or unused.grad.tolist() == [0.0]

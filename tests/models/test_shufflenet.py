"""ShuffleNet: the shuffle, the units' shapes, the cost the paper states."""

import pytest
import torch
from torch import nn

from sigak import models
from sigak.models.shufflenet import ShuffleUnit, shuffle_channels
from sigak.structures import SigakError


def test_the_shuffle_deals_channels_out():
    x = torch.arange(6.0).view(1, 6, 1, 1).expand(1, 6, 2, 3)
    assert shuffle_channels(x, 2)[0, :, 0, 0].tolist() == [0, 3, 1, 4, 2, 5]
    assert torch.equal(shuffle_channels(shuffle_channels(x, 2), 3), x)


@pytest.mark.parametrize(("stride", "outputs", "shape"), [(1, 24, (5, 6)), (2, 48, (3, 3))])
def test_units_keep_or_halve_the_picture(stride, outputs, shape):
    unit = ShuffleUnit(24, outputs, groups=3, stride=stride).eval()
    x = torch.rand(2, 24, 5, 6)
    y = unit(x)
    assert y.shape == (2, outputs, *shape)
    if stride == 2:  # the shortcut comes first, averaged
        assert torch.allclose(y[:, :24], nn.functional.avg_pool2d(x, 3, 2, padding=1))


def test_every_group_count_has_the_channels_of_table_1():
    for name, last in (("shufflenet-g1", 576), ("shufflenet-g2", 800), ("shufflenet", 960),
                       ("shufflenet-g4", 1088), ("shufflenet-g8", 1536)):  # fmt: skip
        with torch.device("meta"):
            assert models.create(name).classifier.in_features == last


def test_thinner_forms():
    with torch.device("meta"):
        assert models.create("shufflenet", width=0.5).classifier.in_features == 480
    with pytest.raises(SigakError, match=r"width 0\.25 gives 50 channels, .* a multiple of 8"):
        models.create("shufflenet-g2", width=0.25)
    with pytest.raises(SigakError, match="1, 2, 3, 4 or 8 groups, received 5"):
        models.create("shufflenet", groups=5)

"""The precision that a network of volumes is trained in."""

import pytest
import torch

from sigak import models
from sigak.runtime import pick_precision
from sigak.structures import SigakError

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(1, 16, 32, 32), (1, 8, 8, 8)])
def test_maps_smaller_than_their_kernels_are_not_learnt_in_bfloat16(shape):
    network = models.create("unet3d-small")
    assert pick_precision("auto", CPU, network, shape) == torch.float32
    assert pick_precision("float32", CPU, network, shape) == torch.float32
    sides = "x".join(map(str, shape[1:]))
    with pytest.raises(SigakError, match=f"3 voxels a side or more, of patches of {sides}"):
        pick_precision("bfloat16", CPU, network, shape)


def test_larger_ones_are():
    network = models.create("unet3d-small")
    assert pick_precision("bfloat16", CPU, network, (1, 24, 24, 32)) == torch.bfloat16


def test_gradients_of_volumes_are_the_same_again():
    """At the smallest patch that bfloat16 takes, whatever memory held before."""

    def gradients():
        torch.manual_seed(0)
        network = models.create("unet3d-small").to(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", torch.bfloat16):
            scores = network(torch.rand(1, 1, 24, 24, 24))
        scores.float().square().mean().backward()
        return [p.grad for p in network.parameters()]

    first = gradients()
    for _ in range(3):
        junk = [torch.full((n,), torch.nan) for n in (1_000, 100_000, 500_000)]
        del junk
        assert all(map(torch.equal, first, gradients()))

"""Losses of pixels against segmentation_models.pytorch's, and by hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sigak import losses
from sigak.structures import IGNORE, SigakError


@pytest.fixture
def given():
    """Logits of 4 classes and maps in which class 3 does not occur and a fifth is ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 4, 9, 11, generator=generator)
    maps = torch.randint(0, 3, (2, 9, 11), generator=generator)
    maps[torch.rand(maps.shape, generator=generator) < 0.2] = IGNORE
    return logits.requires_grad_(), maps.to(torch.uint8)


def agree(mine, theirs, logits):
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    slopes = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (mine, theirs)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-7)


def test_cross_entropy(given):
    logits, maps = given
    theirs = F.cross_entropy(logits, maps.long(), ignore_index=IGNORE)
    agree(losses.pixel_cross_entropy(logits, maps), theirs, logits)


def test_dice(given):
    from segmentation_models_pytorch.losses import DiceLoss

    logits, maps = given
    theirs = DiceLoss("multiclass", ignore_index=IGNORE)(logits, maps.long())
    agree(losses.dice(logits, maps), theirs * 4 / 3, logits)  # theirs counts absent classes as 0


def test_lovasz(given):
    from segmentation_models_pytorch.losses import LovaszLoss

    logits, maps = given
    theirs = LovaszLoss("multiclass", ignore_index=IGNORE)(logits, maps.long())
    agree(losses.lovasz_softmax(logits, maps), theirs, logits)


def test_lovasz_of_certain_answers_is_one_minus_jaccard():
    truth = torch.tensor([[[0, 0, 0, 1, 1, 1]]], dtype=torch.uint8)
    said = torch.tensor([[[0, 0, 1, 1, 1, 0]]])
    logits = 100 * F.one_hot(said, 2).permute(0, 3, 1, 2).float()
    assert losses.lovasz_softmax(logits, truth).item() == pytest.approx(1 - 2 / 4)


def test_focal_by_hand(given):
    logits, maps = given
    rows = logits.detach().permute(0, 2, 3, 1).numpy().astype(np.float64)
    chances = np.exp(rows) / np.exp(rows).sum(-1, keepdims=True)
    known = maps.numpy() != IGNORE
    own = chances[known][np.arange(known.sum()), maps.numpy()[known]]
    expected = ((1 - own) ** 2 * -np.log(own)).mean()
    assert losses.focal(logits, maps).item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(
        losses.focal(logits, maps, gamma=0.0), losses.pixel_cross_entropy(logits, maps)
    )


@pytest.mark.parametrize("name", losses.PIXEL_LOSSES)
def test_nothing_known_teaches_nothing(given, name):
    logits, maps = given
    loss = losses.pixel_loss(name)(logits, torch.full_like(maps, IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_sums(given):
    ce, dice = (losses.pixel_loss(name)(*given).item() for name in ("ce", "dice"))
    assert losses.pixel_loss("ce+dice")(*given).item() == pytest.approx(ce + dice)
    assert losses.pixel_loss("ce + 0.5*dice")(*given).item() == pytest.approx(ce + dice / 2)
    for wrong in ("hinge", "ce+", "x*ce"):
        with pytest.raises(SigakError, match="--loss is a sum of ce, dice, focal, lovasz"):
            losses.pixel_loss(wrong)

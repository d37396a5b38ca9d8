import numpy as np
import pytest
import torch

from sigak.augment import Draws, Pipeline
from sigak.augment.mix import plan_mixing
from sigak.structures import Batch, Instances, SigakError

SIZE = (16, 20)


def flat(count: int, order: list[int] | None = None, **fields) -> Batch:
    """Picture i is all of value 10 i and has the label i, so a mixture shows its recipe."""
    order = order or list(range(count))
    levels = torch.tensor(order, dtype=torch.uint8) * 10
    images = levels[:, None, None, None].expand(count, 3, *SIZE).contiguous()
    return Batch(
        images.contiguous(memory_format=torch.channels_last),
        torch.tensor(order),
        torch.eye(3).double().repeat(count, 1, 1),
        [SIZE] * count,
        [""] * count,
        **({"labels": torch.tensor(order)} | fields),
    )


@pytest.mark.parametrize("spec", ["mixup=1", "mixup=0.2", "cutmix=1", "mixup=0.2,cutmix=1"])
@pytest.mark.parametrize("floating", [False, True])
def test_labels_weigh_what_the_picture_shows(spec: str, floating: bool) -> None:
    batch = flat(8).floating() if floating else flat(8)
    changed = Pipeline.parse(spec, SIZE, classes=8)(batch, 0, 0)
    assert changed.labels.shape == (8, 8)
    assert torch.allclose(changed.labels.sum(1), torch.ones(8))
    shown = changed.images.float().mean((1, 2, 3)) * (255 if floating else 1)
    expected = changed.labels @ (torch.arange(8.0) * 10)
    assert (shown - expected).abs().max() < 0.6
    assert (changed.labels.diag() < 1).any()


def test_cutmix_pastes_whole_pixels_and_mixup_blends() -> None:
    pasted = Pipeline.parse("cutmix=1", SIZE, classes=8)(flat(8), 0, 0).images
    assert set(pasted.unique().tolist()) <= {10 * i for i in range(8)}
    blended = Pipeline.parse("mixup=1", SIZE, classes=8)(flat(8), 0, 0).images
    assert (blended.flatten(1) == blended[:, :1, 0, 0]).all()


def test_with_both_each_picture_takes_one() -> None:
    plan = plan_mixing(Draws(0, 0, np.arange(200)), 1.0, 1.0, SIZE)
    pasted = (plan.boxes[:, 2:] > plan.boxes[:, :2]).all(axis=1)
    assert not (pasted & (plan.weight < 1)).any()
    assert 60 < (plan.weight < 1).sum() < 140


def test_everyone_has_a_partner_who_depends_on_company_not_on_order() -> None:
    members = np.array([3, 14, 15, 92, 65, 35])
    partner = members[plan_mixing(Draws(5, 2, members), 1.0, 0.0, SIZE).partner]
    assert sorted(partner) == sorted(members)
    assert (partner != members).all()
    shuffled = members[::-1]
    again = shuffled[plan_mixing(Draws(5, 2, shuffled), 1.0, 0.0, SIZE).partner]
    assert (again[::-1] == partner).all()


def test_shares_follow_the_beta_distribution() -> None:
    share = plan_mixing(Draws(0, 0, np.arange(5000)), 0.0, 1.0, (512, 512)).share
    # Squares over the border lose a part, so a picture keeps more of itself than one half.
    assert 0.5 < share.mean() < 0.75
    share = plan_mixing(Draws(0, 0, np.arange(5000)), 1.0, 0.0, (512, 512)).share
    assert share.mean() == pytest.approx(0.5, abs=0.02)
    assert share.var() == pytest.approx(1 / 12, rel=0.05)


def test_unknown_labels_weigh_nothing_and_weights_mix() -> None:
    batch = flat(3, labels=torch.tensor([0, -1, 2]))
    weights = Pipeline.parse("mixup=1", SIZE, classes=3)(batch, 0, 0).labels
    assert (weights[:, 1] == 0).all()
    assert weights.sum() < 3
    soft = flat(3, labels=torch.full((3, 4), 0.25))
    mixed = Pipeline.parse("mixup=1", SIZE)(soft, 0, 0).labels
    assert torch.allclose(mixed, torch.full((3, 4), 0.25))


def test_one_picture_alone_stays_itself() -> None:
    changed = Pipeline.parse("mixup=1,cutmix=1", SIZE, classes=2)(flat(1), 0, 0)
    assert torch.equal(changed.images, flat(1).images)
    assert changed.labels.tolist() == [[1, 0]]


def test_what_cannot_be_mixed_is_refused() -> None:
    pipeline = Pipeline.parse("mixup=1", SIZE)
    with pytest.raises(SigakError, match="number of classes is not known"):
        pipeline(flat(4), 0, 0)
    objects = [Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))] * 4
    with pytest.raises(SigakError, match="carries instances"):
        pipeline(flat(4, instances=objects), 0, 0)

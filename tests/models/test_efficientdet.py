"""EfficientDet: counts, anchors, matching, the fused maps, the loss, and the published names."""

import math
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sigak import models
from sigak.data import scenes
from sigak.data.objects import to_instances
from sigak.models import efficientdet
from sigak.models._entry import count_parameters
from sigak.ops.boxes import iou
from sigak.structures import Instances, SigakError

# The publisher counts 3,877,763 for its D0, and 6,625,898 for the tf form of D1, which has biases
# before 3,872 channels of batch norms; the paper gives 8.1 million for D2.
COUNTS = {
    "efficientdet-d0": 3_877_763,
    "efficientdet-d1": 6_625_898 - 3_872,
    "efficientdet-d2": 8_091_215,
}
SIZE = (128, 256)


def build(classes=3, name="efficientdet-d0", **changes):
    torch.manual_seed(0)
    return models.create(name, classes=classes, **models.entry(name).tiny | changes)


def objects(boxes, labels):
    return Instances(torch.tensor(boxes).reshape(-1, 4).float(), torch.tensor(labels).long())


NOTHING = objects([], [])


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_the_publishers(name):
    with torch.device("meta"):
        counted = count_parameters(models.create(name))
    assert counted == models.entry(name).parameters
    assert counted[1] == COUNTS[name]


def test_raw_output_has_a_row_for_each_anchor():
    network = build().eval()
    codes, logits = network(torch.rand(1, 3, *SIZE))
    count = sum(9 * (128 // s) * (256 // s) for s in (8, 16, 32, 64, 128))
    assert codes.shape == (1, count, 4)
    assert logits.shape == (1, count, 3)
    assert torch.sigmoid(network.class_net.output.pointwise.bias).tolist() == pytest.approx(
        [0.01] * 27
    )


def test_anchors_by_hand():
    assert len(efficientdet.anchors((512, 512))) == 49_104
    places = efficientdet.anchors(SIZE)
    assert places[0].tolist() == [-12, -12, 20, 20]  # side 32 around (4, 4)
    assert places[1].tolist() == pytest.approx([4 - 22.4, 4 - 11.2, 4 + 22.4, 4 + 11.2], abs=1e-5)
    side = 32 * 2 ** (2 / 3)  # the largest scale, the tall aspect
    tall = [4 - 0.35 * side, 4 - 0.7 * side, 4 + 0.35 * side, 4 + 0.7 * side]
    assert places[8].tolist() == pytest.approx(tall, abs=1e-4)
    assert places[9].tolist() == [-4, -12, 28, 20]  # the next column
    assert places[9 * 32].tolist() == [-12, -4, 20, 28]  # the next row
    assert places[-9].tolist() == [192 - 256, 64 - 256, 192 + 256, 64 + 256]


def test_raw_output_is_in_the_order_of_the_anchors():
    """The value 4 a + k of one place is code k of its anchor a."""
    head = efficientdet.Head(8, 0, 4).eval()
    torch.nn.init.zeros_(head.output.pointwise.weight)
    head.output.pointwise.bias.data = torch.arange(36.0)
    maps = [torch.zeros(1, 8, 16 // 2**i, 32 // 2**i) for i in range(5)]
    with torch.no_grad():
        found = head(maps)
    assert found.shape == (1, len(efficientdet.anchors(SIZE)), 4)
    assert torch.equal(found[0, 9:18].flatten(), torch.arange(36.0))


def test_fused_maps_are_the_mean_by_weights_that_are_not_negative():
    node = efficientdet.Node(2, 3).eval()
    node.conv = torch.nn.Identity()
    node.weights.data = torch.tensor([1.0, -5.0, 3.0])
    maps = [torch.full((1, 2, 4, 4), v) for v in (2.0, 100.0, 6.0)]
    with torch.no_grad():
        found = node(*maps)
    expected = F.silu(torch.tensor((2.0 + 18.0) / 4.0001)) / math.sqrt(1 + 1e-3)
    torch.testing.assert_close(found, expected.expand_as(found))


def test_a_cell_lets_every_level_reach_every_other():
    cell = efficientdet.Cell([5, 6, 7, 4, 4], 4).eval()
    maps = [torch.rand(1, c, 16 // 2**i, 16 // 2**i) for i, c in enumerate([5, 6, 7, 4, 4])]
    for m in maps:
        m.requires_grad_()
    for level, found in enumerate(cell(maps)):
        assert found.shape == (1, 4, 16 // 2**level, 16 // 2**level)
        gradients = torch.autograd.grad(found.sum(), maps, retain_graph=True)
        assert all(g.abs().sum() > 0 for g in gradients), level


def test_matching_against_loops():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(6, 2, generator=generator) * torch.tensor([200.0, 80.0])
    sides = 4 + torch.rand(6, 2, generator=generator) * 100
    boxes = torch.cat([corners, corners + sides], 1)
    places = efficientdet.anchors(SIZE)
    overlaps = iou(boxes, places)
    expected = {}
    for m in range(len(places)):
        g = int(overlaps[:, m].argmax())
        if overlaps[g, m] >= 0.5:
            expected[m] = g
    for g in range(len(boxes)):
        expected[int(overlaps[g].argmax())] = g
    place, index = efficientdet.assign(places, boxes)
    assert dict(zip(place.tolist(), index.tolist())) == expected
    assert set(index.tolist()) == set(range(6))


def test_the_focal_loss_by_its_formula():
    logits = torch.tensor([-3.0, 0.0, 2.0, -3.0, 0.0, 2.0, -200.0], dtype=torch.float64)
    targets = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    p = logits.sigmoid()
    right = torch.where(targets > 0, p, 1 - p)
    alpha = torch.where(targets > 0, 0.25, 0.75)
    expected = -alpha * (1 - right) ** 1.5 * right.log()
    torch.testing.assert_close(efficientdet.focal_loss(logits, targets), expected)


def test_a_perfect_answer_decodes_to_the_truth_and_costs_nothing():
    network, truth = build(), objects([[10, 6, 58, 70], [100, 8, 190, 100]], [2, 0])
    places = efficientdet.anchors(SIZE)
    place, index = efficientdet.assign(places, truth.boxes)
    codes = torch.zeros(1, len(places), 4)
    codes[0, place] = efficientdet.encode(truth.boxes[index], places[place])
    logits = torch.full((1, len(places), 3), -20.0)
    logits[0, place, truth.labels[index]] = 20.0
    (found,) = network.decode((codes, logits), SIZE, 0.5)
    assert len(found) == len(place)
    torch.testing.assert_close(found.boxes, truth.boxes[index], atol=1e-3, rtol=0)
    assert torch.equal(found.labels, truth.labels[index])
    assert network.loss((codes, logits), [truth], SIZE)["loss"] < 1e-4


def test_the_loss_by_hand():
    """All codes say the anchors themselves but for one that is wrong by 1; all logits are 0."""
    network, places = build(classes=2), efficientdet.anchors((128, 128))
    truth = objects(places[-1].tolist(), [1])
    place, index = efficientdet.assign(places, truth.boxes)
    codes, logits = torch.zeros(1, len(places), 4), torch.zeros(1, len(places), 2)
    codes[0, place] = efficientdet.encode(truth.boxes[index], places[place])
    codes[0, place[0], 2] += 1.0
    losses = network.loss((codes, logits), [truth], (128, 128))
    count = len(place)
    assert count > 1
    # Huber with delta .1 of an error 1: .1 (1 - .05).
    assert losses["box"].item() == pytest.approx(50 * 0.095 / (4 * (count + 1)), rel=1e-4)
    each = math.log(2) * 0.5**1.5
    right, wrong = count * 0.25 * each, (2 * len(places) - count) * 0.75 * each
    assert losses["cls"].item() == pytest.approx((right + wrong) / (count + 1), rel=1e-4)
    assert losses["loss"] == losses["box"] + losses["cls"]


def test_pictures_without_objects_teach_that_there_are_none():
    network = build()
    losses = network(torch.rand(2, 3, 128, 128), [NOTHING, NOTHING])
    assert losses["box"] == 0
    assert losses["cls"] > 0
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_one_batch_is_learnt():
    drawn = [scenes.render(1, i, (128, 128), 3) for i in range(4)]
    images = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p, _ in drawn]) / 255
    truth = [to_instances(o, np.eye(3), (128, 128)) for _, o in drawn]
    network = build(classes=10, cells=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(16):
        found = network(images, truth)
        optimizer.zero_grad()
        found["loss"].backward()
        losses.append(found["loss"].item())
        optimizer.step()
    assert min(losses) < losses[0] / 2


def test_the_size_of_anchors_is_fitted_to_the_objects():
    network = build(size=(256, 256))
    small = torch.tensor([[0.0, 0, 12, 12], [0, 0, 16, 8], [0, 0, 25, 50]])
    changed, told = network.fit_anchors([small])
    assert changed["anchor_scale"] < 2
    assert "anchors fitted" in told
    again = build(size=(256, 256), **changed)
    assert again.anchor_scale == network.anchor_scale
    places = efficientdet.anchors((128, 128), anchor_scale=again.anchor_scale)
    assert (places[0, 2:] - places[0, :2]).tolist() == pytest.approx([8 * again.anchor_scale] * 2)
    photo = torch.tensor([[0.0, 0, 32, 32], [0, 0, 90, 180], [0, 0, 400, 300]])
    for boxes in (photo, torch.zeros(0, 4)):
        assert build().fit_anchors([boxes])[0] == {}


def test_a_size_it_cannot_take():
    with pytest.raises(SigakError, match="multiples of 128, received 500x512"):
        build(size=(500, 512))


# ------------------------------------------------------------------ published weights


def published_name(name):
    """Our name -> the publisher's, written down apart from the conversion."""
    if name.startswith("backbone."):
        return name
    name = name.replace("depthwise", "conv_dw").replace("pointwise", "conv_pw")
    if found := re.fullmatch(r"coarse\.(conv|norm)\.(\w+)", name):
        kind = "conv" if found[1] == "conv" else "bn"
        return f"fpn.resample.3.conv.{kind}.{found[2]}"
    if found := re.fullmatch(r"cells\.(\d)\.(first|second)\.(\d)\.(conv|norm)\.(\w+)", name):
        # Levels 3, 4, 5 are inputs 0, 1, 2; nodes 0 to 3 go down from level 6, 4 to 7 up from 4.
        level = int(found[3]) + (1 if found[2] == "second" else 0)
        node = 3 - level if found[2] == "first" else 3 + level
        kind = "conv" if found[4] == "conv" else "bn"
        return f"fpn.cell.{found[1]}.fnode.{node}.combine.resample.{level}.conv.{kind}.{found[5]}"
    if found := re.fullmatch(r"cells\.(\d)\.(down|up)\.(\d)\.(.+)", name):
        node = int(found[3]) + (4 if found[2] == "up" else 0)
        if found[4] == "weights":
            return f"fpn.cell.{found[1]}.fnode.{node}.combine.edge_weights"
        rest = found[4].removeprefix("conv.").replace("norm.", "bn.")
        return f"fpn.cell.{found[1]}.fnode.{node}.after_combine.conv.{rest}"
    name = name.replace(".convs.", ".conv_rep.").replace(".output.", ".predict.")
    return re.sub(r"\.norms\.(\d)\.(\d)\.", r".bn_rep.\1.\2.bn.", name)


def test_the_publishers_names_are_understood():
    with torch.device("meta"):
        ours = models.create("efficientdet-d0").state_dict()
    theirs = {published_name(key): value for key, value in ours.items()}
    assert len(theirs) == len(ours)
    # Two of the names as the publisher's network has them.
    assert theirs["fpn.cell.0.fnode.5.combine.resample.2.conv.conv.weight"].shape == (64, 320, 1, 1)
    assert theirs["box_net.bn_rep.2.4.bn.running_mean"].shape == (64,)
    (weights,) = models.entry("efficientdet-d0").weights
    converted = weights.convert(theirs)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in ours.items()}
    assert len(weights.names) == weights.classes == 90

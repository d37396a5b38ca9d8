"""SSD, SSDlite, Faster and Mask R-CNN: counts, torchvision's own answers, losses, learning."""

import numpy as np
import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image

from sigak import models
from sigak.data import scenes
from sigak.data.objects import to_instances
from sigak.models import torchvision_detectors
from sigak.models._entry import count_parameters
from sigak.models._tiles import Tiles
from sigak.structures import Instances, SigakError

SIZE = (64, 64)
NOTHING = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
# Published by torchvision beside its weights, those with frozen batch norms among them.
COUNTS = {
    "ssd300": 35_641_826,
    "ssdlite320": 3_440_060,
    "fasterrcnn-r50-fpn": 41_808_406,
    "fasterrcnn-r50-fpn-frozen": 41_755_286,
    "maskrcnn-resnet50-fpn": 44_454_513,
    "maskrcnn-resnet50-fpn-frozen": 44_401_393,
}


def build(name, classes=10, **changes):
    torch.manual_seed(0)
    return models.create(name, classes=classes, **models.entry(name).tiny | changes)


def pictures(count, size=SIZE, masks=False):
    drawn = [scenes.render(1, i, size, 3) for i in range(count)]
    images = torch.stack([torch.from_numpy(pixels).permute(2, 0, 1) for pixels, _ in drawn])
    return images / 255, [
        to_instances(objects, np.eye(3), size, masks=masks) for _, objects in drawn
    ]


def theirs(network, size=SIZE):
    """torchvision's network, told not to resize."""
    network.net.transform.fixed_size = size
    network.net.transform.image_mean = network.normalize.mean.flatten().tolist()
    network.net.transform.image_std = network.normalize.std.flatten().tolist()
    return network.net


def told(truth):
    return [{"boxes": t.boxes, "labels": t.labels + 1} for t in truth]


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_the_publishers(name):
    with torch.device("meta"):
        counted = count_parameters(models.create(name))
    assert counted == models.entry(name).parameters
    assert counted[1] == COUNTS[name]


def test_short_names_mean_the_same():
    assert models.entry("ssdlite") is models.entry("ssdlite320")
    assert models.entry("fasterrcnn") is models.entry("fasterrcnn-r50-fpn")


# ------------------------------------------------------------------ SSD


def test_ssd300_has_its_8732_boxes():
    with torch.device("meta"):
        network = models.create("ssd300").eval()
        codes, logits = network(torch.zeros(1, 3, 300, 300))
    assert codes.shape == (1, 8732, 4)
    assert logits.shape == (1, 8732, 91)
    boxes = network.anchors((300, 300))
    assert boxes.shape == (8732, 4)
    # The first place of the first map: centre at 4, sides .07 of 300; then sqrt(.07 * .15).
    assert boxes[0].tolist() == pytest.approx([-6.5, -6.5, 14.5, 14.5], abs=1e-4)
    assert (boxes[1, 2] - boxes[1, 0]).item() == pytest.approx(300 * 0.0105**0.5, abs=1e-4)
    # The last one: the whole map's place, and the last of its 4 shapes is tall.
    assert (boxes[-1, :2] + boxes[-1, 2:]).tolist() == pytest.approx([300, 300], abs=1e-3)
    assert (boxes[-1, 3] - boxes[-1, 1]) / (boxes[-1, 2] - boxes[-1, 0]) == pytest.approx(
        1 / (0.87 / 2**0.5), rel=1e-4
    )  # 1.23 of the canvas is cut to 1


@pytest.mark.parametrize("size", [(64, 96), (320, 320)])
def test_the_boxes_of_ssdlite_are_those_of_its_maps(size):
    network = build("ssdlite320", size=size).eval()
    with torch.no_grad():
        features = network.net.backbone(torch.rand(1, 3, *size))
    expected = network.net.anchor_generator(
        ImageList(torch.zeros(1, 3, *size), [size]), list(features.values())
    )[0]
    assert torch.equal(network.anchors(size), expected)


def test_the_loss_of_ssd_is_torchvisions():
    network = build("ssdlite320")
    images, truth = pictures(3)
    truth[1] = NOTHING
    ours = network(images, truth)
    reference = theirs(network)(list(images), told(truth))
    torch.testing.assert_close(ours["box"], reference["bbox_regression"])
    torch.testing.assert_close(ours["cls"], reference["classification"])
    assert ours["loss"].item() == pytest.approx(sum(v.item() for v in reference.values()))


def test_what_ssd_finds_is_what_torchvision_finds():
    network = build("ssdlite320", classes=2).eval()
    images, _ = pictures(1)
    with torch.no_grad():
        (found,) = network.decode(network.raw(images), SIZE, 0.001)
        net = theirs(network)
        net.nms_thresh, net.detections_per_img, net.topk_candidates = 1.0, 10**6, 10**6
        reference = net(list(images))[0]
    assert len(found) == len(reference["scores"])
    order = found.scores.argsort(descending=True)
    torch.testing.assert_close(found.scores[order], reference["scores"])
    assert set(found.labels.tolist()) == {0, 1}
    assert (found.labels == 0).sum() == (reference["labels"] == 1).sum()
    clipped = found.boxes.clamp(0, 64)
    torch.testing.assert_close(clipped.sum(0), reference["boxes"].sum(0))


def test_a_perfect_answer_of_ssd_decodes_to_the_truth_and_costs_nothing():
    network = build("ssdlite320", classes=3, size=(64, 96))
    size, truth = (64, 96), Instances(torch.tensor([[10.0, 6, 50, 60]]), torch.tensor([2]))
    places = network.anchors(size)
    codes = network.net.box_coder.encode_single(truth.boxes.expand(len(places), 4), places)
    logits = torch.zeros(1, len(places), 4)
    learning = network._match(truth.boxes, places) >= 0
    assert 0 < learning.sum() < len(places)
    logits[0, learning, 3] = 30.0
    logits[0, ~learning, 0] = 30.0
    (found,) = network.decode((codes[None], logits), size, 0.5)
    assert len(found) == learning.sum()
    torch.testing.assert_close(found.boxes, truth.boxes.expand(len(found), 4), atol=1e-3, rtol=0)
    assert set(found.labels.tolist()) == {2}
    assert network.loss((codes[None], logits), [truth], size)["loss"] < 1e-5


def test_ssd_without_objects():
    network = build("ssdlite320")
    losses = network(torch.rand(2, 3, *SIZE), [NOTHING, NOTHING])
    assert losses["loss"] == 0
    losses["loss"].backward()


# ------------------------------------------------------------------ Faster R-CNN


def test_what_faster_rcnn_finds_is_what_torchvision_finds():
    network = build("fasterrcnn").eval()
    images, _ = pictures(2)
    with torch.no_grad():
        raw = network(images)
        reference = theirs(network)(list(images))
    assert [tuple(part.shape) for part in raw] == [(2, 100, 4), (2, 100), (2, 100)]
    for found, expected in zip(network.decode(raw, SIZE, 0.0), reference, strict=True):
        torch.testing.assert_close(found.boxes, expected["boxes"])
        torch.testing.assert_close(found.scores, expected["scores"])
        assert torch.equal(found.labels + 1, expected["labels"])
        assert 0 < len(found) <= 100


def test_the_losses_of_faster_rcnn_are_torchvisions():
    network = build("fasterrcnn").eval()
    images, truth = pictures(2)
    truth[1] = NOTHING
    torch.manual_seed(1)
    ours = network(images, truth)
    assert not any(part.training for part in network.modules())
    net = theirs(network)
    net.rpn.training = net.roi_heads.training = net.training = True  # the backbone evaluates
    torch.manual_seed(1)
    reference = net(list(images), told(truth))
    named = {"box": "loss_box_reg", "cls": "loss_classifier"}
    named |= {"proposal_box": "loss_rpn_box_reg", "obj": "loss_objectness"}
    for own, their in named.items():
        torch.testing.assert_close(ours[own], reference[their])
    torch.testing.assert_close(ours["loss"], sum(reference.values()))


def test_faster_rcnn_in_half_precision_and_without_objects():
    network = build("fasterrcnn", frozen=True)
    with torch.autocast("cpu", torch.bfloat16):
        losses = network(torch.rand(1, 3, 64, 96), [NOTHING])
        boxes, scores, _ = network(torch.rand(1, 3, 64, 96))
    assert losses["loss"].dtype == boxes.dtype == scores.dtype == torch.float32
    assert losses["loss"].isfinite()
    assert network.net.rpn.training  # as it was


def test_scores_and_labels_are_read_from_raw_output_alone():
    raw = [torch.rand(1, 3, 4), torch.tensor([[0.9, 0.3, 0.0]]), torch.tensor([[4.0, 0.0, 0.0]])]
    network = build("fasterrcnn")
    (found,) = network.decode(raw, SIZE, 0.2)
    assert found.labels.tolist() == [4, 0]
    assert found.labels.dtype == torch.int64
    assert len(network.decode(raw, SIZE, 0.5)[0]) == 1


# ------------------------------------------------------------------ Mask R-CNN


def test_what_mask_rcnn_finds_is_what_torchvision_finds():
    network = build("maskrcnn").eval()
    images, _ = pictures(1)
    with torch.no_grad():
        raw = network(images)
        (reference,) = theirs(network)(list(images))
    assert [tuple(part.shape) for part in raw] == [
        (1, 100, 4), (1, 100), (1, 100), *((1, 16, 64 // s, 64 // s) for s in (4, 8, 16, 32)),
    ]  # fmt: skip
    (found,) = network.decode(raw, SIZE, 0.0)
    torch.testing.assert_close(found.boxes, reference["boxes"])
    pasted = paste_masks_in_image(found.soft.probabilities[:, None], found.boxes, SIZE)
    torch.testing.assert_close(pasted, reference["masks"])
    some = network.decode(raw, SIZE, float(found.scores[10]))[0]
    torch.testing.assert_close(some.soft.probabilities, found.soft.probabilities[:10])
    assert len(network.decode(raw, SIZE, 1.0)[0].soft) == 0


def test_masks_are_stretched_as_torchvision_stretches_them():
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    middle = 9 + 10 * torch.rand(20, 2, 1, 1, generator=generator)
    reach = 5 + 6 * torch.rand(20, 1, 1, generator=generator)
    apart = ((x - middle[:, 0]) ** 2 + (y - middle[:, 1]) ** 2).sqrt()
    blobs = (0.5 + (reach - apart) / 8).clamp(0, 1)
    first = torch.randint(0, 25, (20, 2), generator=generator)
    boxes = torch.cat([first, first + torch.randint(14, 60, (20, 2), generator=generator)], 1)
    boxes = boxes.float().clamp(max=64)
    soft = Tiles(boxes, blobs)
    masks = soft.decided(boxes, torch.eye(3).double(), SIZE).planes()
    expected = paste_masks_in_image(blobs[:, None], boxes, SIZE)[:, 0] > 0.5
    # torchvision stretches a mask one pixel too far, corners being whole pixels to it.
    common, union = (masks & expected).sum((1, 2)), (masks | expected).sum((1, 2))
    assert (common / union).mean() > 0.93
    assert (common / union).min() > 0.85
    twice = torch.diag(torch.tensor([2.0, 2, 1]).double())
    larger = soft.decided(boxes * 2, twice, (128, 128)).areas()
    assert larger.tolist() == pytest.approx((4 * masks.sum((1, 2))).tolist(), rel=0.1)


def test_a_mask_of_28_is_stretched_over_its_box_exactly():
    halves = torch.zeros(1, 28, 28)
    halves[:, :, :14] = 1.0
    soft = Tiles(torch.tensor([[10.0, 4, 38, 60]]), halves)
    (mask,) = soft.decided(soft.boxes, torch.eye(3).double(), SIZE).planes()
    assert mask[4:60, 10:24].float().mean() > 0.97  # but for the ends, where nothing is beyond
    assert mask.sum() == mask[4:60, 10:24].sum()
    flat = Tiles(torch.tensor([[5.0, 5, 5, 9]]), halves)
    assert flat.decided(flat.boxes, torch.eye(3).double(), SIZE).areas().tolist() == [0]


def test_the_losses_of_mask_rcnn_are_torchvisions():
    network = build("maskrcnn").eval()
    images, truth = pictures(2, masks=True)
    torch.manual_seed(1)
    ours = network(images, truth)
    net = theirs(network)
    net.rpn.training = net.roi_heads.training = net.training = True  # the backbone evaluates
    torch.manual_seed(1)
    targets = [t | {"masks": one.masks.planes().byte()} for t, one in zip(told(truth), truth)]
    reference = net(list(images), targets)
    torch.testing.assert_close(ours["mask"], reference["loss_mask"])
    torch.testing.assert_close(ours["loss"], sum(reference.values()))
    with pytest.raises(SigakError, match="learns from masks"):
        network(images, pictures(2)[1])


# ------------------------------------------------------------------ both


@pytest.mark.parametrize(
    ("name", "steps"), [("ssdlite320", 10), ("fasterrcnn", 5), ("maskrcnn", 6)]
)
def test_one_batch_is_learnt(name, steps):
    network = build(name)
    images, truth = pictures(4, masks=name == "maskrcnn")
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        found = network(images, truth)
        optimizer.zero_grad()
        found["loss"].backward()
        losses.append(found["loss"].item())
        optimizer.step()
    assert min(losses) < losses[0] / 2
    still = [key for key, p in network.named_parameters() if p.grad is None]
    assert still == []
    assert any(key.startswith(network.head[0]) for key, _ in network.named_parameters())


@pytest.mark.parametrize("model", ["fasterrcnn", "maskrcnn"])
def test_the_older_names_of_published_weights(model):
    row = models.entry(model)
    with torch.device("meta"):
        ours = models.create(model).state_dict()
    wanted = {k: v for k, v in ours.items() if not k.endswith("num_batches_tracked")}

    def older(name):
        name = name.removeprefix("net.").replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for part in ("inner_blocks", "layer_blocks"):
            if part in name:
                name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        return name

    published = {older(k): torch.ones(1) for k in wanted}
    assert "backbone.fpn.inner_blocks.0.weight" in published
    assert "rpn.head.conv.weight" in published
    published["backbone.body.bn1.running_var"] = torch.tensor([3e-5])
    (weights,) = row.weights
    converted = weights.convert(published)
    assert converted.keys() == wanted.keys()
    # The file knows no epsilon: its variance and ours with ours are the same.
    assert converted["net.backbone.body.bn1.running_var"].item() + 1e-5 == pytest.approx(3e-5)
    newer = {k.removeprefix("net."): torch.ones(1) for k in wanted}
    assert weights.convert(newer).keys() == wanted.keys()
    assert len(weights.names) == weights.classes == 90
    assert weights.names[0] == "person"
    assert weights.names[89] == "toothbrush"


def test_what_they_cannot_take():
    with pytest.raises(SigakError, match=r"300x300 alone, received 320x320"):
        models.create("ssd300", size=(320, 320))
    with pytest.raises(SigakError, match=r"3 channels, received 1"):
        models.create("fasterrcnn", color="gray")
    assert torchvision_detectors.SSD.stride == 0  # no other canvas once it is built

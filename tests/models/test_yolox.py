"""YOLOX: counts, SimOTA against a plain loop, the loss, and the published network."""

import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.ops import nms

import sigak
from sigak.io import image, onnx_weights
from sigak.models import yolox
from sigak.models._entry import count_parameters
from sigak.ops.boxes import iou
from sigak.structures import Instances

COUNTS = {
    "yolox-nano": 912_159,
    "yolox-tiny": 5_055_855,
    "yolox-s": 8_968_255,
    "yolox-m": 25_326_495,
    "yolox-l": 54_208_895,
    "yolox-x": 99_071_455,
}


def build(name="yolox-nano", classes=3, **changes):
    row = yolox.MODELS[name]
    given = {"channels": 3, "size": (64, 64), "mean": row.input.mean, "std": row.input.std}
    return row.build(classes=classes, **given | row.args | changes)


def tiny(**changes):
    torch.manual_seed(0)
    return build(**{"width": 1 / 8, "depthwise": False} | changes)


def objects(boxes, labels):
    return Instances(torch.tensor(boxes).reshape(-1, 4).float(), torch.tensor(labels).long())


EMPTY = objects([], [])


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_the_publishers(name):
    with torch.device("meta"):
        total, trainable = count_parameters(build(name, classes=80))
    assert trainable == COUNTS[name]
    assert (total, trainable) == yolox.MODELS[name].parameters


def test_the_raw_maps_have_the_strides_8_16_and_32():
    raw = tiny().eval().raw(torch.rand(2, 3, 64, 96))
    assert [tuple(level.shape) for level in raw] == [(2, 8, 8, 12), (2, 8, 4, 6), (2, 8, 2, 3)]


def test_the_focus_takes_every_second_pixel():
    focus = yolox.Focus(1, 4)
    focus.block = nn.Identity()
    pixels = torch.arange(8.0).view(1, 1, 2, 4)
    parts = focus(pixels)[0, :, 0].tolist()
    assert parts == [[0, 2], [4, 6], [1, 3], [5, 7]]


def test_inside_pictures_are_bgr_in_0_to_255():
    network = tiny().eval()
    seen = []
    network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    picture = torch.zeros(1, 3, 64, 64)
    picture[:, 0] = 1.0  # red
    network.raw(picture)
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx([0, 0, 255])


def test_the_prior_is_one_per_cent():
    network = tiny()
    for output in (*network.class_outputs, *network.object_outputs):
        assert torch.sigmoid(output.bias).tolist() == pytest.approx([0.01] * len(output.bias))


def silent(classes=2, size=(64, 96)):
    """Raw maps that find nothing, with boxes too small to overlap anything."""
    maps = [torch.full((1, 5 + classes, size[0] // s, size[1] // s), -20.0) for s in (8, 16, 32)]
    return [level.index_fill(1, torch.arange(2), 0.0) for level in maps]


def test_decoding_by_hand():
    raw = silent()
    raw[1][0, :, 2, 3] = torch.tensor([0.5, 0.25, math.log(2), 0.0, 0.0, 1.0, -30.0])
    (found,) = tiny(classes=2).decode(raw, (64, 96), 0.25)
    # Centre (3.5, 2.25) and sides (2, 1) in cells of 16 pixels.
    assert found.boxes.tolist() == [pytest.approx([40, 28, 72, 44])]
    assert found.labels.tolist() == [0]
    assert found.scores.tolist() == pytest.approx([0.5 / (1 + math.exp(-1))])


def test_a_perfect_answer_decodes_to_the_truth_and_costs_nothing():
    network, truth = tiny(classes=2), objects([[10, 6, 38, 30], [50, 8, 90, 60]], [1, 0])
    raw = silent()
    for (column, row, level), box, label in zip([(3, 2, 0), (4, 2, 1)], truth.boxes, truth.labels):
        place = torch.tensor([[column, row, (8, 16, 32)[level]]])
        raw[level][0, :4, row, column] = yolox._encode(box[None], place)[0]
        raw[level][0, 4, row, column] = 20.0
        raw[level][0, 5 + label, row, column] = 20.0
    (found,) = network.decode(raw, (64, 96), 0.5)
    order = found.boxes[:, 0].argsort()
    torch.testing.assert_close(found.boxes[order], truth.boxes)
    assert found.labels[order].tolist() == [1, 0]
    # No other place overlaps the objects, so each takes its perfect one alone.
    assert network.loss(raw, [truth], (64, 96))["loss"] < 1e-3


def assign_by_loops(boxes, values, places, truth):
    """SimOTA as the paper tells it, object by object."""
    pairs, costs = {}, {}
    centres = (places[:, :2] + 0.5) * places[:, 2:]

    def near(m, g):
        middle = (truth.boxes[g, :2] + truth.boxes[g, 2:]) / 2
        return bool(((centres[m] - middle).abs() < 1.5 * places[m, 2]).all())

    taking_part = [m for m in range(len(boxes)) if any(near(m, g) for g in range(len(truth)))]
    for g, label in enumerate(truth.labels.tolist()):
        overlaps = {m: iou(truth.boxes[g : g + 1], boxes[m : m + 1]).item() for m in taking_part}
        k = max(1, int(sum(sorted(overlaps.values(), reverse=True)[:10])))
        cost = {}
        for m in taking_part:
            p = (values[m, 5:].sigmoid() * values[m, 4].sigmoid()).sqrt()
            target = torch.zeros_like(p)
            target[label] = 1.0
            entropy = nn.functional.binary_cross_entropy(p, target, reduction="sum").item()
            cost[m] = entropy - 3 * math.log(overlaps[m] + 1e-8) + 1e6 * (not near(m, g))
        for m in sorted(cost, key=cost.get)[:k]:
            if m not in pairs or cost[m] < costs[m]:
                pairs[m], costs[m] = g, cost[m]
    return pairs


@pytest.mark.parametrize("seed", range(5))
def test_simota_agrees_with_a_plain_loop(seed):
    torch.manual_seed(seed)
    raw = [torch.randn(1, 8, 128 // s, 96 // s) for s in (8, 16, 32)]
    values, places = yolox._flatten(raw)
    boxes = yolox._boxes(values, places)[0]
    corners = torch.rand(6, 2) * torch.tensor([60.0, 90.0])
    truth = Instances(
        torch.cat([corners, corners + 8 + 30 * torch.rand(6, 2)], 1), torch.randint(3, (6,))
    )
    found = yolox.assign(boxes, values[0], places, truth)
    ours = dict(zip(found.places.tolist(), found.objects.tolist()))
    assert len(ours) == len(found.places)
    assert ours == assign_by_loops(boxes, values[0], places, truth)
    expected = iou(truth.boxes, boxes)[found.objects, found.places]
    torch.testing.assert_close(found.overlaps, expected)


def test_pictures_without_objects_teach_that_there_are_none():
    network = tiny()
    losses = network(torch.rand(2, 3, 64, 64), [EMPTY, EMPTY])
    assert losses["loss"].isfinite()
    assert losses["box"] == losses["cls"] == 0
    assert losses["obj"] > 0
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_gradients_reach_every_parameter_and_one_batch_is_learnt():
    network = tiny(classes=2)
    images = torch.rand(2, 3, 64, 96) * 0.2
    truth = [objects([[8, 8, 40, 40]], [0]), objects([[30, 20, 80, 60]], [1])]
    for picture, one in zip(images, truth):
        for (x1, y1, x2, y2), label in zip(one.boxes.int().tolist(), one.labels.tolist()):
            picture[label, y1:y2, x1:x2] = 1.0
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    network.closing = True
    for step in range(80):
        losses = network(images, truth)
        assert set(losses) == {"loss", "box", "obj", "cls", "l1"}
        optimizer.zero_grad()
        losses["loss"].backward()
        if step == 0:
            first = losses["loss"].item()
            assert all(p.grad is not None for p in network.parameters())
        optimizer.step()
    assert losses["loss"] < first / 3
    with torch.no_grad():
        answer = network.decode(network.raw(images), (64, 96), 0.3)
    for found, one in zip(answer, truth):
        overlaps = iou(one.boxes, found.boxes) * (one.labels[:, None] == found.labels)
        assert (overlaps.amax(1) > 0.6).all()


# ------------------------------------------------------------------ published weights


def official_name(name):
    """Our name -> the publisher's, written down apart from the conversion."""
    parts = name.split(".")
    csp = {"main": "conv1", "skip": "conv2", "merge": "conv3"}
    neck = {
        "lateral5": "lateral_conv0", "up4": "C3_p4", "lateral4": "reduce_conv1", "up3": "C3_p3",
        "down3": "bu_conv2", "out4": "C3_n3", "down4": "bu_conv1", "out5": "C3_n4",
    }  # fmt: skip
    outputs = {
        "class_outputs": "cls_preds",
        "box_outputs": "reg_preds",
        "object_outputs": "obj_preds",
    }
    branches = {"stem": "stems", "classes": "cls_convs", "boxes": "reg_convs"}
    if parts[0] in outputs:
        return ".".join(["head", outputs[parts[0]], *parts[1:]])
    if parts[0] == "towers":
        start, rest = ["head", branches[parts[2]], parts[1]], parts[3:]
        start, rest = (start, rest) if parts[2] == "stem" else ([*start, rest[0]], rest[1:])
    elif parts[0] == "neck":
        start, rest = ["backbone", neck[parts[1]]], parts[2:]
    elif parts[1] == "stem":
        start, rest = ["backbone", "backbone", "stem", "conv"], parts[3:]
    else:
        stage = f"dark{int(parts[2]) + 2}"
        start, rest = ["backbone", "backbone", stage, parts[3]], parts[4:]
        if stage == "dark5" and parts[3] == "1":
            rest = [{"main": "conv1", "merge": "conv2"}[rest[0]], *rest[1:]]
    words = {**csp, "blocks": "m", "reduce": "conv1", "expand": "conv2", "norm": "bn"}
    rest = [words.get(part, part) for part in rest]
    if rest[0] in "01":  # the two layers of a depthwise convolution
        rest[0] = ("dconv", "pconv")[int(rest[0])]
    elif len(rest) > 3 and rest[-3] in "01":
        rest[-3] = ("dconv", "pconv")[int(rest[-3])]
    return ".".join([*start, *rest])


@pytest.mark.parametrize("name", ["yolox-nano", "yolox-s"])
def test_the_publishers_names_are_understood(name):
    with torch.device("meta"):
        ours = build(name, classes=80).state_dict()
    theirs = {official_name(key): value for key, value in ours.items()}
    assert "backbone.backbone.dark5.2.m.0.conv1.conv.weight" in theirs
    assert len(theirs) == len(ours)
    (convert, *_) = [w.convert for w in yolox.MODELS[name].weights]
    assert convert(theirs).keys() == ours.keys()


DATA = Path(os.environ.get("SIGAK_DATA", ""))
DOG = [
    (16, 0.855, [132.8, 206.6, 325.7, 543.1]),
    (1, 0.803, [51.7, 137.2, 572.3, 423.6]),
    (2, 0.798, [466.3, 78.4, 692.5, 171.3]),
]


@pytest.mark.data
def test_the_published_nano_finds_what_its_publisher_says():
    network = build("yolox-nano", classes=80).eval()
    state = onnx_weights.read(DATA / "weights/yolox_nano.onnx")
    convert = yolox.MODELS["yolox-nano"].weights[1].convert
    missing = network.load_state_dict(convert(state), strict=False).missing_keys
    assert all(name.endswith("num_batches_tracked") for name in missing)

    preparation = image.Preparation((416, 416), fit="corner", resample="bilinear")
    pixels, matrix, _ = image.load(DATA / "photos/darknet-dog.jpg", preparation)
    with torch.no_grad():
        raw = network.raw(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    (found,) = network.decode(raw, (416, 416), 0.3)
    kept = found[nms(found.boxes + 1000 * found.labels[:, None], found.scores, 0.45)]
    for (label, score, box), i in zip(DOG, range(3)):
        assert kept.labels[i] == label
        assert kept.scores[i].item() == pytest.approx(score, abs=0.005)
        assert (kept.boxes[i] / matrix[0, 0]).tolist() == pytest.approx(box, abs=1)
    assert kept.labels[3:].tolist() == [7]
    assert kept.scores[3].item() == pytest.approx(0.306, abs=0.005)


def test_the_last_epochs_of_training_add_the_distance(tmp_path):
    run = sigak.train(
        "yolox-nano", "scenes:8@64", size=64, batch=4, epochs=3, augment="mosaic=1,close=1",
        out=str(tmp_path / "run"), quiet=True,
    )  # fmt: skip
    first, second, last = run.history["l1"]
    assert first == second == 0 < last

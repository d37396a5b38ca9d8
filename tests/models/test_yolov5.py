import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from sigak.io import image
from sigak.io.inert_pickle import read_inert
from sigak.layers.conv import fuse
from sigak.models import yolov5
from sigak.models._entry import count_parameters
from sigak.ops.boxes import aligned_iou, cxcywh_to_xyxy, iou, transform_boxes
from sigak.ops.nms import nms
from sigak.structures import Instances, SigakError

SIZE = (64, 96)
NOTHING = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))


def build(name="yolov5n", **changes):
    torch.manual_seed(0)
    row = yolov5.MODELS[name]
    plain = {"classes": 3, "channels": 3, "size": SIZE, "mean": (0,) * 3, "std": (1,) * 3}
    return row.build(**plain | {k: v for k, v in row.tiny.items() if k != "size"} | changes)


def scenes():
    """Two pictures with blocks of the colours of their classes, and one without any."""
    truth = [
        Instances(torch.tensor([[6.0, 8, 40, 50], [52, 20, 90, 60]]), torch.tensor([0, 1])),
        Instances(torch.tensor([[20.0, 10, 76, 44]]), torch.tensor([2])),
        NOTHING,
    ]
    images = torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(0)) / 4
    for picture, objects in zip(images, truth):
        for (x1, y1, x2, y2), label in zip(objects.boxes.int().tolist(), objects.labels):
            picture[:, y1:y2, x1:x2] = torch.eye(3)[label][:, None, None]
    return images, truth


def empty(classes=3, size=SIZE):
    return [
        torch.full((1, 3 * (5 + classes), size[0] // s, size[1] // s), -12.0)
        for s in yolov5.STRIDES
    ]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("yolov5n", 1_872_157),
        ("yolov5s", 7_235_389),
        ("yolov5m", 21_190_557),
        ("yolov5l", 46_563_709),
        ("yolov5x", 86_749_405),
    ],
)
def test_parameters_are_the_published_ones(name, published):
    with torch.device("meta"):
        counted = count_parameters(build(name, classes=80, **yolov5.MODELS[name].args))
    assert counted == yolov5.MODELS[name].parameters
    assert counted[1] == published


def test_maps_of_a_canvas_that_is_not_square():
    raw = build().eval()(torch.rand(2, 3, 64, 96))
    assert [tuple(level.shape) for level in raw] == [
        (2, 24, 8, 12), (2, 24, 4, 6), (2, 24, 2, 3),
    ]  # fmt: skip


def test_a_size_it_cannot_take():
    with pytest.raises(SigakError, match=r"multiples of 32.*64 x 100.*64 x 128"):
        build(size=(64, 100))


def test_the_first_scores_expect_eight_objects_on_640():
    torch.manual_seed(0)
    head = yolov5.Head((8, 16, 32), 4)
    for level, stride in zip(head.levels, yolov5.STRIDES):
        bias = level.bias.detach().view(3, 9)
        bound = 1 / math.sqrt(level.in_channels)  # of torch's own start, which is kept
        assert (bias[:, :4].abs() <= bound).all()
        assert ((bias[:, 4] - math.log(8 / (640 / stride) ** 2)).abs() <= bound).all()
        assert ((bias[:, 5:] - math.log(0.6 / (4 - 0.99999))).abs() <= bound).all()


def test_decoding_by_hand():
    raw = empty(classes=2)
    said = raw[1].view(1, 3, 7, 4, 6)[0, 2, :, 1, 3]  # stride 16, anchor 59 x 119, cell (3, 1)
    third = math.log(3)  # the sigmoid is 3/4
    said[:] = torch.tensor([0.0, third, 0.0, -third, 0.0, third, 0.0])
    (found,) = build(classes=2).decode(raw, SIZE, 0.2)
    assert found.labels.tolist() == [0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.375, 0.25]))
    # centre (3 + .5, 1 + 1) cells, sides 1 and (1/2)^2 of the anchor's
    box = cxcywh_to_xyxy(torch.tensor([[56.0, 32, 59, 119 / 4]]))
    torch.testing.assert_close(found.boxes, box.expand(2, 4))
    assert len(build(classes=2).decode(raw, SIZE, 0.3)[0]) == 1
    assert len(build(classes=2).decode(raw, SIZE, 0.4)[0]) == 0


def test_matching_by_hand():
    goals = yolov5._listed(
        [
            NOTHING,
            Instances(
                torch.tensor([[22.0, 10, 38, 40], [0.0, 0, 60, 4], [88, 56, 96, 64]]),
                torch.tensor([1, 0, 2]),
            ),
        ],
        torch.zeros(()),
    )
    anchors = torch.tensor(yolov5.ANCHORS[0], dtype=torch.float32)
    found = yolov5.match(goals, anchors, 8, (8, 12))
    picture, anchor, y, x = (values.tolist() for values in found.place)
    assert set(picture) == {1}
    places = set(zip(found.labels.tolist(), anchor, x, y))
    assert len(places) == len(x)
    # 16 x 30 around (3.75, 3.125) cells: all anchors fit; its cell, right of it, above it.
    first = {(1, a, *cell) for a in (0, 1, 2) for cell in ((3, 3), (4, 3), (3, 2))}
    # 60 x 4 fits none. 8 x 8 around (11.5, 7.5): 33 is more than 4 times 8, the others fit; half of
    # a cell is nearer to the end, where the map has no more cells.
    last = {(2, a, 11, 7) for a in (0, 1)}
    assert places == first | last
    torch.testing.assert_close(
        found.boxes[found.labels == 1], torch.tensor([[3.75, 3.125, 2, 3.75]]).expand(9, 4)
    )


def test_a_perfect_answer_costs_little_and_decodes_to_the_truth():
    # One object whose sides are those of the second anchor of stride 16, in the middle of a cell.
    box = cxcywh_to_xyxy(torch.tensor([[40.0, 24, 62, 45]]))
    truth = [Instances(box, torch.tensor([1]))]
    network, raw = build(), empty()
    goals = yolov5._listed(truth, raw[0])
    for level, stride, anchors in zip(raw, yolov5.STRIDES, network.detect.anchors):
        found = yolov5.match(goals, anchors, stride, tuple(level.shape[2:]))
        cells = level.view(1, 3, 8, *level.shape[2:])
        for (_, a, y, x), goal in zip(zip(*(v.tolist() for v in found.place)), found.boxes):
            centre = (goal[:2] - torch.tensor([x, y]) + 0.5) / 2
            share = torch.cat([centre, (goal[2:] * stride / anchors[a]).sqrt() / 2])
            cells[0, a, :4, y, x] = share.clamp(1e-6, 1 - 1e-6).logit()
            cells[0, a, 4, y, x] = cells[0, a, 6, y, x] = 12.0
    (decoded,) = network.decode(raw, SIZE, 0.5)
    assert len(decoded) > 3
    assert set(decoded.labels.tolist()) == {1}
    torch.testing.assert_close(decoded.boxes, box.expand(len(decoded), 4), atol=0.01, rtol=0)
    good = network.loss(raw, truth, SIZE)
    assert good["loss"] < 1e-3
    assert network.loss(raw, [NOTHING], SIZE)["obj"] > 10 * good["obj"]


def test_the_loss_by_hand():
    """Sums over all levels, divided by the matched places; objectness is told the overlap."""
    truth = [Instances(torch.tensor([[10.0, 10, 50, 50]]), torch.tensor([0]))]
    torch.manual_seed(0)
    raw = [torch.randn(1, 24, 64 // s, 96 // s) for s in yolov5.STRIDES]
    network = build()
    parts = network.loss(raw, truth, SIZE)
    goals = yolov5._listed(truth, raw[0])
    box = obj = cls = 0.0
    count = 0
    for level, stride, anchors in zip(raw, yolov5.STRIDES, network.detect.anchors):
        found = yolov5.match(goals, anchors, stride, tuple(level.shape[2:]))
        said = level.view(1, 3, 8, *level.shape[2:])
        wanted = torch.zeros_like(said[:, :, 4])
        for b, a, y, x in zip(*(values.tolist() for values in found.place)):
            share = said[b, a, :4, y, x].sigmoid()
            centre = (share[:2] * 2 - 0.5 + torch.tensor([x, y])) * stride
            mine = cxcywh_to_xyxy(torch.cat([centre, (2 * share[2:]) ** 2 * anchors[a]]))
            overlap = aligned_iou(mine, truth[0].boxes[0], "ciou")
            wanted[b, a, y, x] = overlap.clamp(min=0)
            kinds = torch.cat([said[b, a, 5:6, y, x].neg(), said[b, a, 6:, y, x]])
            box, cls = box + 1 - overlap, cls + torch.nn.functional.softplus(kinds).sum()
            count += 1
        loss = torch.nn.functional.softplus(said[:, :, 4]) - wanted * said[:, :, 4]
        obj += loss.sum()
    torch.testing.assert_close(parts["box"], 5 * box / count)
    torch.testing.assert_close(parts["obj"], obj / count)
    torch.testing.assert_close(parts["cls"], cls / count)
    torch.testing.assert_close(parts["loss"], parts["box"] + parts["obj"] + parts["cls"])


def test_anchors_stay_where_they_fit_and_are_fitted_where_not():
    network = build()
    published = network.detect.anchors.clone()
    corners = torch.tensor([[0.0, 0, 20, 30], [0, 0, 300, 200]])
    changed, told = network.fit_anchors([corners] * 8)
    assert changed == {}
    assert "stay: 100.0%" in told
    torch.testing.assert_close(network.detect.anchors, published)
    flat = torch.tensor([[0.0, 0, width, width / 20] for width in range(60, 120)])
    _, told = network.fit_anchors([flat])
    assert "of the objects to 100.0%" in told
    areas = network.detect.anchors.prod(-1).flatten()
    assert (areas.diff() > 0).all()  # the smallest on the finest level
    assert build().load_state_dict(network.state_dict(), strict=True)
    assert "stay" in build().fit_anchors([torch.zeros(0, 4)])[1]


def test_pictures_without_objects_crowds_and_one_class():
    images, truth = scenes()
    network = build()
    parts = network(images, [NOTHING] * 3)
    assert all(value.isfinite() for value in parts.values())
    assert parts["box"] == parts["cls"] == 0
    crowd = Instances(truth[1].boxes, truth[1].labels, crowd=torch.tensor([True]))
    raw = network.eval()(images)
    torch.testing.assert_close(
        network.loss(raw, [crowd] * 3, SIZE), network.loss(raw, [NOTHING] * 3, SIZE)
    )
    single = build(classes=1)
    alone = [Instances(t.boxes, torch.zeros_like(t.labels)) for t in truth]
    parts = single(images, alone)
    assert parts["cls"] == 0
    assert parts["loss"].isfinite()


def test_learning_one_batch():
    images, truth = scenes()
    network = build()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        parts = network(images, truth)
        optimizer.zero_grad()
        parts["loss"].backward()
        losses.append(parts["loss"].item())
        optimizer.step()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert losses[-1] < 0.3 * losses[0]
    with torch.no_grad():  # in training mode: 60 steps are too few for the running statistics
        found = network.decode(network(images), SIZE, 0.5)
    for objects, wanted in zip(found, truth):
        kept = objects[nms(objects.boxes, objects.scores, objects.labels, 0.45)]
        assert sorted(kept.labels.tolist()) == wanted.labels.tolist()
        if len(wanted):
            assert iou(wanted.boxes, kept.boxes).amax(1).min() > 0.7


# ------------------------------------------------------------------ the published weights


@pytest.fixture(scope="module")
def published():
    """The published YOLOv5n, and what else its file tells."""
    row = yolov5.MODELS["yolov5n"]
    network = build(classes=80, **row.args)
    state, facts = read_inert(Path(os.environ["SIGAK_DATA"]) / "weights" / "yolov5n.pt")
    network.load_state_dict(row.weights[0].convert(state), strict=True)
    return network.eval(), facts["names"]


def find(network, photo, size):
    """(label, score, box in the file's frame) of what is found at .25, best first."""
    path = Path(os.environ["SIGAK_DATA"]) / "photos" / photo
    pixels, matrix, _ = image.load(path, image.Preparation(size, "rgb", "letterbox"))
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        (found,) = network.decode(network(images), size, 0.25)
    found = found[nms(found.boxes, found.scores, found.labels, network.nms_iou)]
    boxes = transform_boxes(found.boxes.double(), torch.from_numpy(np.linalg.inv(matrix)))
    return list(zip(found.labels.tolist(), found.scores.tolist(), boxes.tolist()))


@pytest.mark.data
def test_the_published_weights_find_the_dog(published):
    network, names = published
    expected = [
        ("car", 0.724, [462.0, 77.8, 683.4, 168.5]),
        ("dog", 0.696, [131.7, 219.0, 314.3, 545.0]),
        ("bicycle", 0.470, [199.1, 147.1, 569.7, 424.4]),
    ]
    for form in (network, fuse(network)):
        found = find(form, "darknet-dog.jpg", (480, 640))
        for (label, score, box), (name, published_score, published_box) in zip(found, expected):
            assert names[label] == name
            assert score == pytest.approx(published_score, abs=0.001)
            assert box == pytest.approx(published_box, abs=0.1)


@pytest.mark.data
def test_the_published_weights_on_a_square_canvas(published):
    network, names = published
    found = find(network, "darknet-dog.jpg", (640, 640))
    assert {names[label] for label, _, _ in found} >= {"dog", "bicycle", "car"}

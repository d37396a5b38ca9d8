import math

import pytest
import torch

from sigak.layers.conv import ConvNorm, fuse
from sigak.models import yolov8
from sigak.models._assignment import assign
from sigak.models._entry import count_parameters
from sigak.ops.boxes import iou
from sigak.ops.nms import nms
from sigak.structures import Instances, SigakError

SIZE = (64, 96)


def build(name="yolov8n", **changes):
    torch.manual_seed(0)
    row = yolov8.MODELS[name]
    plain = {"classes": 3, "channels": 3, "size": SIZE, "mean": (0,) * 3, "std": (1,) * 3}
    return row.build(**plain | {k: v for k, v in row.tiny.items() if k != "size"} | changes)


def scenes():
    """Two pictures with blocks of the colours of their classes, and one without any."""
    truth = [
        Instances(torch.tensor([[6.0, 8, 40, 50], [52, 20, 90, 60]]), torch.tensor([0, 1])),
        Instances(torch.tensor([[20.0, 10, 76, 44]]), torch.tensor([2])),
        Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)),
    ]
    images = torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(0)) / 4
    for image, objects in zip(images, truth):
        for (x1, y1, x2, y2), label in zip(objects.boxes.int().tolist(), objects.labels):
            image[:, y1:y2, x1:x2] = torch.eye(3)[label][:, None, None]
    return images, truth


def perfect(truth, size=SIZE, classes=3):
    """Raw maps that say exactly the truth of one picture: every place within an object names it."""
    raw = []
    for stride in yolov8.STRIDES:
        height, width = size[0] // stride, size[1] // stride
        level = torch.full((1, 64 + classes, height, width), -20.0)
        for box, label in zip(truth.boxes, truth.labels):
            for y in range(height):
                for x in range(width):
                    cx, cy = (x + 0.5) * stride, (y + 0.5) * stride
                    x1, y1, x2, y2 = box.tolist()
                    sides = [(cx - x1), (cy - y1), (x2 - cx), (y2 - cy)]
                    if min(sides) <= 0 or max(sides) / stride > 15:
                        continue
                    level[0, 64 + label, y, x] = 20.0
                    for side, length in enumerate(sides):
                        low = int(length / stride)
                        share = length / stride - low
                        bins = torch.full((16,), -20.0)
                        bins[low] = math.log(max(1 - share, 1e-9))
                        bins[min(low + 1, 15)] = math.log(max(share, 1e-9)) if low < 15 else 0.0
                        level[0, 16 * side : 16 * side + 16, y, x] = bins
        raw.append(level)
    return raw


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("yolov8n", 3_157_200),
        ("yolov8s", 11_166_560),
        ("yolov8m", 25_902_640),
        ("yolov8l", 43_691_520),
        ("yolov8x", 68_229_648),
    ],
)
def test_parameters_are_the_published_ones(name, published):
    with torch.device("meta"):
        counted = count_parameters(build(name, classes=80, **yolov8.MODELS[name].args))
    assert counted == yolov8.MODELS[name].parameters
    assert counted[1] == published


def test_maps_of_a_canvas_that_is_not_square():
    network = build()
    raw = network.eval()(torch.rand(2, 3, 64, 96))
    assert [tuple(level.shape) for level in raw] == [
        (2, 67, 8, 12), (2, 67, 4, 6), (2, 67, 2, 3),
    ]  # fmt: skip


def test_a_size_it_cannot_take():
    with pytest.raises(SigakError, match=r"multiples of 32.*100 x 64.*128"):
        build(size=(100, 64))


def test_the_first_scores_expect_five_objects_on_640():
    network = build(classes=80)
    for cls, box, stride in zip(network.detect.cls, network.detect.box, (8, 16, 32)):
        assert cls[-1].bias[0].item() == pytest.approx(math.log(5 / 80 / (640 / stride) ** 2))
        assert (box[-1].bias == 1).all()


def test_decoding_by_hand():
    raw = [torch.full((1, 64 + 2, 64 // s, 96 // s), -30.0) for s in yolov8.STRIDES]
    bins = raw[1][0, :64, 1, 2].view(4, 16)  # stride 16, centre (40, 24)
    for side, place in enumerate((1, 0, 2, 3)):
        bins[side, place] = 30.0
    bins[0, 2] = 30.0  # left: 1 or 2 cells as likely, so 1.5
    raw[1][0, 64, 1, 2] = 0.0
    raw[1][0, 65, 1, 2] = math.log(3)
    (found,) = build(classes=2).decode(raw, SIZE, 0.25)
    assert found.labels.tolist() == [0, 1]  # one box may stand for two classes
    torch.testing.assert_close(found.scores, torch.tensor([0.5, 0.75]))
    torch.testing.assert_close(found.boxes, torch.tensor([[16.0, 24, 72, 72]] * 2))


def test_perfect_raw_decodes_to_the_truth_and_costs_little():
    _, truth = scenes()
    raw = perfect(truth[0])
    network = build()
    (found,) = network.decode(raw, SIZE, 0.5)
    kept = found[nms(found.boxes, found.scores, found.labels, 0.7)]
    order = kept.labels.argsort()
    torch.testing.assert_close(kept.boxes[order], truth[0].boxes, atol=0.01, rtol=0)
    parts = network.loss(raw, truth[:1], SIZE)
    assert parts["box"] < 1e-3
    worse = network.loss([level + torch.randn_like(level) for level in raw], truth[:1], SIZE)
    assert worse["loss"] > parts["loss"]


def test_assignment_against_a_small_loop():
    torch.manual_seed(0)
    maps = [torch.randn(1, 67, 64 // s, 96 // s) for s in yolov8.STRIDES]
    logits, sides, places = yolov8._flatten(maps)
    scores, boxes = logits.sigmoid(), yolov8._boxes(sides, places)
    goals = torch.tensor([[[4.0, 4, 60, 60], [30, 20, 90, 62], [1, 1, 3, 3]]])
    labels = torch.tensor([[0, 2, 1]])
    found = assign(scores, boxes, places, goals, labels, torch.ones(1, 3).bool())

    overlap, merit = torch.zeros(3, len(places)), torch.full((3, len(places)), -1.0)
    for g, (goal, label) in enumerate(zip(goals[0], labels[0])):
        for m, (x, y, _) in enumerate(places.tolist()):
            if goal[0] < x < goal[2] and goal[1] < y < goal[3]:
                pair = yolov8.aligned_iou(boxes[0, m], goal, "ciou").clamp(min=0)
                overlap[g, m], merit[g, m] = pair, scores[0, m, label] ** 0.5 * pair**6
    taken = {g: {m for m in merit[g].topk(10).indices.tolist() if merit[g, m] >= 0} for g in (0, 1)}
    for m in taken[0] & taken[1]:
        taken[int(overlap[0, m] > overlap[1, m])].discard(m)  # the lesser loses it
    assert found.assigned[0].nonzero()[:, 0].tolist() == sorted(taken[0] | taken[1])
    for g, label in ((0, 0), (1, 2)):
        mine = sorted(taken[g])
        torch.testing.assert_close(found.boxes[0, mine], goals[0, g].expand(len(mine), 4))
        ratio = overlap[g, mine].max() / (merit[g, mine].max() + 1e-9)
        torch.testing.assert_close(found.scores[0, mine, label], merit[g, mine] * ratio)
    assert found.scores[0, :, 1].sum() == 0  # the third holds no centre of any place


def test_focal_loss_of_distributions_by_hand():
    sides = torch.zeros(1, 4, 16)
    sides[0, 0, 2], sides[0, 0, 3] = 2.0, 1.0
    lengths = torch.tensor([[2.25, 20.0, -1.0, 0.0]])
    total = math.log(14 + math.exp(2) + math.exp(1))
    first = 0.75 * (total - 2) + 0.25 * (total - 1)
    expected = (first + 3 * math.log(16)) / 4  # flat distributions cost the same at any length
    assert yolov8._focal(sides, lengths).item() == pytest.approx(expected, rel=1e-5)


def test_pictures_without_objects_and_crowds():
    images, truth = scenes()
    network = build()
    nothing = [truth[2]] * 3
    parts = network(images, nothing)
    assert all(value.isfinite() for value in parts.values())
    assert parts["box"] == parts["dfl"] == 0
    crowd = Instances(truth[1].boxes, truth[1].labels, crowd=torch.tensor([True]))
    raw = network.eval()(images)
    torch.testing.assert_close(
        network.loss(raw, [crowd] * 3, SIZE), network.loss(raw, nothing, SIZE)
    )


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
    assert network.bins.grad is None  # fixed numbers, though a parameter
    for name, parameter in network.named_parameters():
        if name == "bins":
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert losses[-1] < 0.2 * losses[0]
    with torch.no_grad():  # in training mode: 60 steps are too few for the running statistics
        found = network.decode(network(images), SIZE, 0.25)
    for objects, wanted in zip(found, truth):
        kept = objects[nms(objects.boxes, objects.scores, objects.labels, 0.5)]
        assert sorted(kept.labels.tolist()) == wanted.labels.tolist()
        if len(wanted):
            assert iou(wanted.boxes, kept.boxes).amax(1).min() > 0.7


def official(network):
    """The state dict under the names of the official files."""
    places = {ours: number for number, ours in yolov8._OFFICIAL.items()}
    state = {}
    for name, value in network.state_dict().items():
        if name == "bins":
            continue
        start = max((p for p in places if name.startswith(f"{p}.")), key=len)
        rest = name.removeprefix(start)
        if start == "detect":
            rest = rest.replace(".box.", ".cv2.").replace(".cls.", ".cv3.")
        rest = rest.replace(".blocks.", ".m.").replace(".first.", ".cv1.")
        rest = rest.replace(".second.", ".cv2.").replace(".split.", ".cv1.")
        rest = rest.replace(".reduce.", ".cv1.").replace(".merge.", ".cv2.")
        state[f"model.{places[start]}{rest.replace('.norm.', '.bn.')}"] = value
    return state | {"model.22.dfl.conv.weight": torch.arange(16.0).view(1, 16, 1, 1)}


def test_official_names_become_ours():
    network = build()
    state = official(network)
    for name in (
        "model.0.conv.weight", "model.2.cv1.bn.bias", "model.4.m.1.cv2.conv.weight",
        "model.9.cv2.conv.weight", "model.21.m.0.cv1.bn.weight", "model.22.cv2.0.0.conv.weight",
        "model.22.cv3.2.2.bias",
    ):  # fmt: skip
        assert name in state
    converted = yolov8.MODELS["yolov8n"].weights[0].convert(state)
    build().load_state_dict(converted, strict=True)


def test_fused_convolutions_answer_the_same():
    network = build()
    images, _ = scenes()
    network.train()(images)
    network(images * 0.5)  # statistics that are not those of the start
    folded = fuse(network)
    with torch.no_grad():
        for before, after in zip(network.eval()(images), folded(images)):
            torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())


def test_fusing_leaves_what_it_cannot_fold():
    inner = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.BatchNorm2d(4)
    )
    network = torch.nn.ModuleDict(
        {"a": inner, "b": ConvNorm(4, 6, 3, activation=torch.nn.Identity)}
    )
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    folded = fuse(network)
    assert isinstance(folded["a"][1], torch.nn.Identity)
    assert isinstance(folded["a"][3], torch.nn.BatchNorm2d)
    x = torch.rand(2, 3, 9, 9)
    with torch.no_grad():
        before, after = (n.eval()["b"](n["a"](x)) for n in (network, folded))
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)

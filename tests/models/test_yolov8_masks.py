"""YOLOv8 with masks: published counts, decoding and loss by hand, learning, official names."""

import pytest
import torch
from torch.nn import functional as F

from sigak import models
from sigak.data import scenes
from sigak.data.objects import to_instances
from sigak.models import yolov8
from sigak.models._entry import count_parameters
from sigak.models._prototypes import Mixed, Prototypes, mask_loss
from sigak.ops.nms import nms
from sigak.structures import Instances

SIZE = (64, 96)


def build(classes=10, size=SIZE, **changes):
    torch.manual_seed(0)
    return models.create(
        "yolov8n-seg", classes=classes, **models.entry("yolov8n-seg").tiny | {"size": size}
        | changes,
    )  # fmt: skip


def pictures(count, size=SIZE, most=3):
    drawn = [scenes.render(1, i, size, most) for i in range(count)]
    images = torch.stack([torch.from_numpy(pixels).permute(2, 0, 1) for pixels, _ in drawn])
    eye = torch.eye(3).double().numpy()
    return images / 255, [to_instances(one, eye, size, masks=True) for _, one in drawn]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("yolov8n-seg", 3_409_968),
        ("yolov8s-seg", 11_821_056),
        ("yolov8m-seg", 27_285_968),
        ("yolov8l-seg", 45_973_568),
        ("yolov8x-seg", 71_827_888),
    ],
)
def test_parameters_are_the_published_ones(name, published):
    with torch.device("meta"):
        network = models.create(name)
    counted = count_parameters(network)
    assert counted == models.entry(name).parameters
    if name == "yolov8l-seg":  # given with batch norms folded: a channel keeps one of its two
        channels = (counted[0] - counted[1]) // 2
        assert counted[1] - channels == published
    else:
        assert counted[1] == published


def test_maps_coefficients_and_prototypes():
    network = build(classes=3).eval()
    raw = network(torch.rand(2, 3, *SIZE))
    assert [tuple(part.shape) for part in raw] == [
        (2, 99, 8, 12), (2, 99, 4, 6), (2, 99, 2, 3), (2, 32, 16, 24),
    ]  # fmt: skip
    assert Prototypes(8, 16)(torch.rand(1, 8, 5, 6)).shape == (1, 32, 10, 12)


def test_a_mask_is_a_weighted_sum_within_its_box():
    prototypes = torch.zeros(32, 16, 24)
    prototypes[0], prototypes[1, :, :12], prototypes[1, :, 12:] = -0.5, 1.0, 0.0
    coefficients = torch.zeros(3, 32)
    coefficients[0, :2] = torch.tensor([1.0, 1.0])  # the left half
    coefficients[1, :2] = torch.tensor([-1.0, 0.0])  # everything
    soft = Mixed(coefficients, prototypes)[torch.tensor([1, 0])]
    assert len(soft) == 2
    boxes = torch.tensor([[10.0, 8, 30, 20], [40, 30, 60, 60]])
    all_of_it, left = soft.decided(boxes, torch.eye(3).double(), SIZE).planes()
    assert all_of_it.sum() == 20 * 12
    assert all_of_it[8:20, 10:30].all()
    assert left[30:60, 40:48].all()  # x = 48 is the middle of the canvas
    assert left.sum() == 30 * 8
    # The same in a file twice as large, whose picture begins at 4, 2 of the canvas.
    file = torch.tensor([[2.0, 0, -8], [0, 2, -4], [0, 0, 1]]).double()
    (_, left) = soft.decided(boxes * 2 - torch.tensor([8, 4, 8, 4]), file, (128, 192)).planes()
    assert left[56:116, 72:88].all()
    assert left.sum() == 60 * 16


def test_decoding_gives_each_candidate_its_own_mask():
    network = build(classes=2)
    raw = [torch.full((1, 64 + 2 + 32, 64 // s, 96 // s), -30.0) for s in yolov8.STRIDES]
    for level in raw:
        level[:, -32:] = 0
    raw[0][0, 65, 3, 4], raw[1][0, 64:66, 1, 2] = 4.0, 3.0
    raw[0][0, -32, 3, 4], raw[1][0, -31, 1, 2] = 5.0, 7.0
    raw.append(torch.randn(1, 32, 16, 24))
    (found,) = network.decode(raw, SIZE, 0.5)
    assert found.labels.tolist() == [1, 0, 1]
    weights = found.soft.coefficients
    assert weights[:, :2].tolist() == [[5, 0], [0, 7], [0, 7]]
    assert torch.equal(found.soft.prototypes, raw[-1][0])
    plain = yolov8.YOLOv8.decode(network, [level[:, :-32] for level in raw[:3]], SIZE, 0.5)[0]
    assert torch.equal(plain.boxes, found.boxes)
    assert torch.equal(plain.scores, found.scores)


def test_the_mask_loss_against_a_small_loop():
    torch.manual_seed(0)
    _, truth = pictures(2)
    coefficients, prototypes = torch.randn(2, 20, 32), torch.randn(2, 32, 16, 24)
    chosen = torch.rand(2, 20) > 0.4
    owners = torch.stack([torch.randint(0, len(t), (20,)) for t in truth])
    found = mask_loss(coefficients, prototypes, chosen, owners, truth)
    terms = []
    for i, one in enumerate(truth):
        planes = one.masks.planes()
        for m in chosen[i].nonzero()[:, 0].tolist():
            g = owners[i, m]
            x1, y1, x2, y2 = (one.boxes[g] / 4).tolist()
            total = 0.0
            for y in range(16):
                for x in range(24):
                    if x1 < x + 0.5 < x2 and y1 < y + 0.5 < y2:
                        logit = coefficients[i, m] @ prototypes[i, :, y, x]
                        goal = planes[g, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].float().mean()
                        total += F.binary_cross_entropy_with_logits(logit, goal).item()
            terms.append(total / max((x2 - x1) * (y2 - y1), 1))
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_pictures_without_objects_and_crowds():
    network = build()
    images, truth = pictures(2)
    none = truth[0][torch.zeros(0, dtype=torch.int64)]
    parts = network(images, [none, none])
    assert parts["mask"] == 0
    parts["loss"].backward()
    assert all(p.grad is not None for n, p in network.named_parameters() if n != "bins")
    crowds = [Instances(t.boxes, t.labels, masks=t.masks, crowd=torch.ones(len(t)).bool())
              for t in truth]  # fmt: skip
    raw = network.eval()(images)
    assert network.loss(raw, crowds, SIZE)["mask"] == 0


def test_one_batch_is_learnt_with_its_masks():
    torch.manual_seed(0)
    network = build(size=(64, 64))
    images, truth = pictures(4, (64, 64), 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(55):
        parts = network(images, truth)
        optimizer.zero_grad()
        parts["loss"].backward()
        losses.append(parts["mask"].item())
        optimizer.step()
    assert losses[-1] < 0.4 * losses[0]
    with torch.no_grad():  # in training mode: so few steps leave the running statistics behind
        found = network.decode(network(images), (64, 64), 0.2)
    overlaps = []
    for objects, wanted in zip(found, truth):
        kept = objects[nms(objects.boxes, objects.scores, objects.labels, 0.5)]
        masks = kept.soft.decided(kept.boxes, torch.eye(3).double(), (64, 64)).planes()
        common = (masks[:, None] & wanted.masks.planes()).sum((2, 3))
        union = (masks[:, None] | wanted.masks.planes()).sum((2, 3))
        overlaps += (common / union).amax(0).tolist() if len(kept) else [0.0] * len(wanted)
    assert sum(overlaps) / len(overlaps) > 0.6


def test_official_names_become_ours():
    network = build()
    places = {ours: number for number, ours in yolov8._OFFICIAL.items()}
    names = {"coefficients.": "model.22.cv4.", "prototypes.first.": "model.22.proto.cv1.",
             "prototypes.up.": "model.22.proto.upsample.",
             "prototypes.second.": "model.22.proto.cv2.",
             "prototypes.last.": "model.22.proto.cv3."}  # fmt: skip
    state = {}
    for name, value in network.state_dict().items():
        mine = next((start for start in names if name.startswith(start)), None)
        if mine is not None:
            state[names[mine] + name.removeprefix(mine).replace("norm.", "bn.")] = value
        elif name != "bins":
            start = max((p for p in places if name.startswith(f"{p}.")), key=len)
            rest = name.removeprefix(start)
            if start == "detect":
                rest = rest.replace(".box.", ".cv2.").replace(".cls.", ".cv3.")
            for ours, theirs in ((".blocks.", ".m."), (".first.", ".cv1."), (".second.", ".cv2."),
                                 (".split.", ".cv1."), (".reduce.", ".cv1."),
                                 (".merge.", ".cv2."), (".norm.", ".bn.")):  # fmt: skip
                rest = rest.replace(ours, theirs)
            state[f"model.{places[start]}{rest}"] = value
    for name in ("model.22.proto.upsample.bias", "model.22.proto.cv1.bn.weight",
                 "model.22.proto.cv3.conv.weight", "model.22.cv4.2.1.bn.running_mean",
                 "model.22.cv4.0.2.bias"):  # fmt: skip
        assert name in state
    converted = models.entry("yolov8n-seg").weights[0].convert(state)
    torch.manual_seed(1)
    build().load_state_dict(converted | {"bins": network.bins.data}, strict=True)

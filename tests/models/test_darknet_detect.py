"""Darknet's detectors: counts, layers against their rules, heads by hand, files, training."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import batched_nms

from sigak.io import darknet as files
from sigak.io import image
from sigak.models import _darknet_heads, darknet_detect
from sigak.models._anchors import overlaps
from sigak.models._darknet_cfgs import layout
from sigak.models._darknet_layers import Pool, Reorg
from sigak.models._entry import count_parameters
from sigak.models.darknet_detect import Darknet
from sigak.ops.boxes import iou
from sigak.structures import Instances, SigakError

PLAIN = {"channels": 3, "size": (64, 64), "mean": (0.0,) * 3, "std": (1.0,) * 3}
# (numbers of the published .weights file, those that are learnt, layers, convolutions)
PUBLISHED = {
    "yolov2": (50_983_561, 50_962_889, 32, 23),
    "yolov2-tiny": (11_237_145, 11_232_057, 16, 9),
    "yolov3": (62_001_757, 61_949_149, 107, 75),
    "yolov3-tiny": (8_858_734, 8_852_366, 24, 13),
    "yolov3-spp": (63_052_381, 62_998_749, 114, 76),
    "yolov4": (64_429_405, 64_363_101, 162, 110),
    "yolov4-tiny": (6_062_814, 6_056_606, 38, 21),
}
SMALL = ["yolov2-tiny", "yolov3-tiny", "yolov4-tiny"]


def tiny(cfg, classes=2, **changes):
    torch.manual_seed(0)
    return Darknet(classes=classes, cfg=cfg, **PLAIN | {"width": 1 / 16} | changes)


def objects(boxes, labels):
    return Instances(torch.tensor(boxes).reshape(-1, 4).float(), torch.tensor(labels).long())


EMPTY = objects([], [])


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_those_of_the_published_files(name):
    total, learnt, layers, convolutions = PUBLISHED[name]
    row = darknet_detect.MODELS[name]
    with torch.device("meta"):
        network = row.build(classes=80, **PLAIN, **row.args)
    assert count_parameters(network) == (total, learnt) == row.parameters
    assert len(network.layers) == layers
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == convolutions
    assert network.stride == 32
    assert sum(tensor.numel() for tensor in darknet_detect._stored(network).values()) == total


def test_heads_have_the_published_anchors():
    def masks(name):
        return [s.wholes("mask") for s in layout(name) if s.kind == "yolo"]

    assert masks("yolov3") == [(6, 7, 8), (3, 4, 5), (0, 1, 2)]
    assert masks("yolov4") == masks("yolov3")[::-1]
    assert masks("yolov3-tiny") == [(3, 4, 5), (0, 1, 2)]
    assert masks("yolov4-tiny") == [(3, 4, 5), (1, 2, 3)]
    heads = tiny("yolov4").heads.values()
    assert [head.scale for head in heads] == [1.2, 1.1, 1.05]
    assert {(h.box, h.ignore, h.nearby) for h in heads} == {("ciou", 0.7, 0.213)}
    assert [head.weights["box"] for head in heads] == pytest.approx([70 * 0.07] * 3)
    (region,) = tiny("yolov2").heads.values()
    assert region.softmax
    assert region.anchors[4] == (9.77052, 9.16828)
    assert region.weights == {"box": 1, "obj": 5, "noobj": 1, "cls": 1}


@pytest.mark.parametrize("name", SMALL)
def test_pictures_may_be_of_any_shape_and_do_not_see_each_other(name):
    network = tiny(name).eval()
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        raw = network.raw(images)
        apart = [network.raw(picture[None]) for picture in images]
    assert raw[0].shape[2:] == (2, 3)
    for level, *single in zip(raw, *apart):
        torch.testing.assert_close(level, torch.cat(single), atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------ layers


def test_a_pool_of_2_with_stride_1_pads_right_and_below():
    x = torch.tensor([[[[4.0, 3.0], [2.0, -9.0]]]])
    assert Pool(2, 1, 1)(x)[0, 0].tolist() == [[4, 3], [2, -9]]


@pytest.mark.parametrize(("size", "stride", "side"), [(2, 2, 5), (2, 2, 6), (5, 1, 4), (3, 2, 7)])
def test_pools_follow_darknets_rule(size, stride, side):
    x = torch.randn(1, 1, side, side)
    padding = size - 1
    out = (side + padding - size) // stride + 1
    expected = torch.empty(out, out)
    for row in range(out):
        for column in range(out):
            top, left = row * stride - padding // 2, column * stride - padding // 2
            window = x[0, 0, max(top, 0) : top + size, max(left, 0) : left + size]
            expected[row, column] = window.max()
    assert torch.equal(Pool(size, stride, padding)(x)[0, 0], expected)


def test_reorg_is_darknets_index_rule():
    channels, height, width, s = 8, 4, 6, 2
    x = torch.randn(1, channels, height, width)
    memory, moved = x.flatten().numpy(), np.empty(x.numel(), np.float32)
    few = channels // (s * s)
    for k in range(channels):
        for j in range(height):
            for i in range(width):
                offset = k // few
                column, row = i * s + offset % s, j * s + offset // s
                source = column + width * s * (row + height * s * (k % few))
                moved[i + width * (j + height * k)] = memory[source]
    expected = torch.from_numpy(moved).view(1, channels * s * s, height // s, width // s)
    found = Reorg(s)(x.to(memory_format=torch.channels_last))
    assert torch.equal(found, expected)
    assert not torch.equal(found, nn.functional.pixel_unshuffle(x, s))


def small_cfg(*sections):
    return "\n".join(["[net]", "width=32", "height=32", "channels=3", *sections])


CONV = "[convolutional]\nfilters=4\nsize=3\npad=1\nactivation=linear"
YOLO = "[yolo]\nmask=1\nanchors=4,4, 8,16\nclasses=2"
OUT = "[convolutional]\nsize=1\nactivation=linear\nfilters=7"


def of(*sections, **changes):
    return tiny(small_cfg(*sections), width=1.0, **changes)


def test_groups_routes_and_shortcuts_take_what_they_name():
    route = "[route]\nlayers=-1,0\ngroups=2\ngroup_id=1"
    network = of(CONV, CONV, "[shortcut]\nfrom=-2\nactivation=relu", route, OUT, YOLO).eval()
    seen = []
    network.layers[4].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        network.raw(x)
        first = network.layers[0](x)
        total = (first + network.layers[1](first)).relu()
    torch.testing.assert_close(seen[0], torch.cat([total[:, 2:], first[:, 2:]], 1))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ([CONV], r"expected a .cfg with a \[yolo\]"),
        ([CONV, YOLO.replace("1\n", "5\n"), YOLO], "expected a mask of anchors from 0 to 1"),
        (
            [CONV, "[upsample]", YOLO],
            r"expected \[convolutional\] before it, received \[upsample\]",
        ),
        ([CONV, "[lstm]", OUT, YOLO], r"\[lstm\] of line 10: there is no such layer"),
        ([CONV, "[route]\nlayers=-3", OUT, YOLO], "expected one of the 1 layers before it"),
        ([CONV + "\nxnor=1", OUT, YOLO], "xnor is not built"),
        ([CONV.replace("linear", "loggy"), OUT, YOLO], "received 'loggy'"),
        ([CONV + "\ngroups=2", OUT, YOLO], "groups that divide 3 and 4 channels"),
        ([CONV, OUT, YOLO + "\nnew_coords=1"], "new_coords is not built"),
        ([CONV, OUT, CONV, "[shortcut]\nfrom=-2", OUT, YOLO], "expected layers of one shape"),
    ],
)
def test_what_cannot_be_built_is_told(sections, message):
    with pytest.raises(SigakError, match=message):
        of(*sections)


def test_an_unknown_name_is_told():
    with pytest.raises(SigakError, match=r"or one of yolov2, .*received 'yolov9'"):
        tiny("yolov9")


# ------------------------------------------------------------------ heads


def test_decoding_by_hand():
    network = of(CONV.replace("pad=1", "pad=1\nstride=8"), OUT, YOLO + "\nscale_x_y=1.2")
    raw = torch.full((1, 7, 4, 6), -20.0)
    raw[0, :, 1, 2] = torch.tensor([0.0, math.log(3), 0.0, math.log(2), 0.0, 1.0, -30.0])
    (found,) = network.decode([raw], (32, 48), 0.2)
    # Centre (2 + .5, 1 + .75 * 1.2 - .1) in cells of 8 pixels, sides (8, 2 * 16).
    assert found.boxes.tolist() == [pytest.approx([16, -1.6, 24, 30.4])]
    assert found.labels.tolist() == [0]
    assert found.scores.tolist() == pytest.approx([0.5 / (1 + math.exp(-1))])


REGION = "[region]\nanchors=1,2\nnum=1\nclasses=2\nsoftmax=1\nobject_scale=5"


def test_a_region_has_anchors_in_cells_and_one_class_a_box():
    network = of(CONV.replace("pad=1", "pad=1\nstride=8"), OUT, REGION)
    raw = torch.full((1, 7, 4, 6), -20.0)
    raw[0, :, 1, 2] = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0 + math.log(3)])
    (found,) = network.decode([raw], (32, 48), 0.2)
    assert found.boxes.tolist() == [pytest.approx([16, 4, 24, 20])]
    assert found.labels.tolist() == [1]
    assert found.scores.tolist() == pytest.approx([0.5 * 0.75])


HEADS = [
    REGION,
    YOLO,
    YOLO + "\niou_loss=ciou\niou_normalizer=.07\nscale_x_y=1.1",
]


@pytest.mark.parametrize("head", HEADS)
def test_a_perfect_answer_costs_nothing_and_decodes_to_the_truth(head):
    network = of(CONV.replace("pad=1", "pad=1\nstride=8"), OUT, head)
    (stated,) = network.heads.values()
    truth = objects([[10, 6, 23, 22]], [1])  # centre (16.5, 14): cell 2, 1
    raw = torch.full((1, 7, 4, 6), -20.0)
    wide, high = (8, 16)
    within = [(c + (stated.scale - 1) / 2) / stated.scale for c in (0.0625, 0.75)]
    logits = [math.log(p / (1 - p)) for p in within]
    raw[0, :, 1, 2] = torch.tensor(
        [*logits, math.log(13 / wide), math.log(16 / high), 20.0, -20.0, 20.0]
    )
    (found,) = network.decode([raw], (32, 48), 0.5)
    torch.testing.assert_close(found.boxes, truth.boxes, atol=1e-4, rtol=1e-4)
    assert found.labels.tolist() == [1]
    losses = network.loss([raw], [truth], (32, 48))
    # The cross-entropy of a centre is least, but not 0, where it is right.
    least = sum(-p * math.log(p) - (1 - p) * math.log(1 - p) for p in within)
    least *= (2 - 13 * 16 / (32 * 48)) * (head == YOLO)
    assert losses["loss"].item() == pytest.approx(least, abs=1e-4)
    assert network.loss([raw], [EMPTY], (32, 48))["obj"] > 0.9


def matched(truth, *heads):
    sections = [section for head in heads for section in (OUT, head)]
    network = of(*sections)
    values = [
        head.split(torch.zeros(1, len(head.mask) * 7, 8, 8)) for head in network.heads.values()
    ]
    stacked = _darknet_heads._Truth(truth.boxes, truth.labels, torch.zeros_like(truth.labels))
    used = sorted({a for head in network.heads.values() for a in head.mask})
    return [
        _darknet_heads._match(head, v, stacked, used, (64, 64))
        for head, v in zip(network.heads.values(), values)
    ]


ANCHORS = "anchors=4,4, 10,10, 20,20, 40,40\nclasses=2"


def test_an_object_is_learnt_by_the_best_anchor_of_those_there_are():
    heads = [f"[yolo]\nmask={mask}\n{ANCHORS}" for mask in ("2,3", "1,2")]
    truth = objects([[8, 8, 12, 12], [30, 50, 50, 70]], [0, 1])  # 4x4 has no head; 20x20 has two
    coarse, fine = matched(truth, *heads)
    assert (coarse.truth.tolist(), coarse.anchor.tolist()) == ([1], [2])
    assert (fine.truth.tolist(), fine.anchor.tolist()) == ([0, 1], [1, 2])
    assert (fine.column.tolist(), fine.row.tolist()) == ([1, 5], [1, 7])


def test_anchors_of_nearly_the_shape_learn_too():
    head = f"[yolo]\nmask=0,1,2,3\n{ANCHORS}\niou_thresh=.213"
    (found,) = matched(objects([[10, 10, 28, 28]], [0]), head)
    assert found.anchor.tolist() == [1, 2]  # 10x10: .31, 20x20: .81; 40x40: .2025


def test_a_box_that_overlaps_an_object_is_no_background():
    network = of(CONV.replace("pad=1", "pad=1\nstride=8"), OUT, YOLO + "\nignore_thresh=.6")
    truth = objects([[13, 4, 21, 20]], [0])
    raw = torch.full((1, 7, 4, 4), -20.0)
    raw[0, :4] = 0.0  # every box as large as the anchor, in the middle of its cell
    raw[0, 4, 1, 2] = 20.0  # the object's own cell
    raw[0, 5, 1, 2] = 20.0
    calm = network.loss([raw], [truth], (32, 32))["obj"]
    raw[0, 4, 1, 1] = 5.0  # its neighbour: x 8 to 16, IoU 3/13
    assert network.loss([raw], [truth], (32, 32))["obj"] > calm + 4
    raw[0, 0, 1, 1] = 3.0  # moved to x 11.6 to 19.6: IoU .7
    assert network.loss([raw], [truth], (32, 32))["obj"] == pytest.approx(calm.item(), abs=1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_fitted_anchors_are_those_of_the_objects_and_build_the_network_again(name):
    network = tiny(name)
    sides = [(8, 8), (16, 12), (12, 24), (30, 30), (20, 40), (48, 50)]
    boxes = torch.tensor([[0.0, 0, width, height] for width, height in sides])
    changed, told = network.fit_anchors([boxes] * 3)
    head = next(iter(network.heads.values()))
    cells = 32 if head.in_cells else 1
    used = sorted({number for one in network.heads.values() for number in one.mask})
    anchors = np.array(head.anchors)[used] * cells
    best = overlaps(np.array(sides, float), anchors).max(1)
    assert best.mean() > 0.85
    assert f"by {best.mean():.0%} on average" in told
    again = Darknet(classes=2, **PLAIN, **changed)
    assert [h.anchors for h in again.heads.values()] == [h.anchors for h in network.heads.values()]
    again.load_state_dict(network.state_dict(), strict=True)
    images = torch.rand(1, 3, 64, 64)
    for first, second in zip(network.eval().raw(images), again.eval().raw(images)):
        torch.testing.assert_close(first, second)
    assert tiny(name).fit_anchors([boxes[:1]])[0] == {}


@pytest.mark.parametrize("name", SMALL)
def test_pictures_without_objects_teach_that_there_are_none(name):
    network = tiny(name)
    losses = network(torch.rand(2, 3, 64, 64), [EMPTY, EMPTY])
    assert losses["box"] == losses["cls"] == 0
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_one_batch_is_learnt(name):
    network = tiny(name, width=1 / 8)
    images = torch.rand(2, 3, 64, 96) * 0.2
    truth = [objects([[8, 8, 40, 40]], [0]), objects([[30, 20, 80, 60]], [1])]
    for picture, one in zip(images, truth):
        x1, y1, x2, y2 = one.boxes[0].int().tolist()
        picture[one.labels[0], y1:y2, x1:x2] = 1.0
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(60):
        losses = network(images, truth)
        assert set(losses) == {"loss", "box", "obj", "cls"}
        optimizer.zero_grad()
        losses["loss"].backward()
        if step == 0:
            first = losses["loss"].item()
            assert all(p.grad is not None for p in network.parameters())
        optimizer.step()
    assert losses["loss"] < first / 4
    with torch.no_grad():
        answer = network.decode(network.raw(images), (64, 96), 0.3)
    for found, one in zip(answer, truth):
        best = found[found.scores.argmax()[None]]
        assert best.labels.tolist() == one.labels.tolist()
        assert iou(one.boxes, best.boxes).item() > 0.5


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("name", ["yolov2", "yolov3-tiny", "yolov4-tiny"])
def test_weights_make_the_round_trip(name, tmp_path):
    network = tiny(name, classes=3).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    darknet_detect.save_weights(network, tmp_path / "x.weights", seen=5)
    (tmp_path / "x.cfg").write_text(network.cfg)
    again, arguments = darknet_detect.adopt(tmp_path / "x.cfg", tmp_path / "x.weights")
    state = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    read = again.state_dict()
    assert all(torch.equal(read[key], value) for key, value in state.items())
    assert (arguments["classes"], arguments["size"]) == (3, (64, 64))
    rebuilt = darknet_detect.MODELS["darknet"].build(**arguments)
    rebuilt.load_state_dict(read, strict=True)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for one, two in zip(network.raw(images), rebuilt.eval().raw(images)):
            assert torch.equal(one, two)


def test_published_weights_are_known_by_their_length():
    row = darknet_detect.MODELS["yolov4-tiny"]
    convert = row.weights[0].convert
    named = convert({"numbers": torch.arange(float(row.parameters[0]))})
    with torch.device("meta"):
        wanted = row.build(classes=80, **PLAIN, **row.args).state_dict()
    wanted = {k: v.shape for k, v in wanted.items() if not k.endswith("num_batches_tracked")}
    assert {k: v.shape for k, v in named.items()} == wanted
    assert named["layers.0.1.bias"].tolist() == list(range(32))  # batch norm's shift comes first
    for other in ({"numbers": torch.zeros(7)}, {"weight": torch.zeros(7)}):
        assert convert(other) is other


def test_the_order_of_a_weights_file(tmp_path):
    network = of(CONV + "\nbatch_normalize=1", OUT, YOLO)
    norm, out = network.layers[0][1], network.layers[1][0]
    for value, tensor in enumerate([norm.bias, norm.weight, norm.running_mean, norm.running_var]):
        nn.init.constant_(tensor, value)
    nn.init.constant_(out.bias, 9)
    darknet_detect.save_weights(network, tmp_path / "x.weights")
    numbers = files.read_weights(tmp_path / "x.weights").numbers
    assert numbers[:16].tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    kernel = network.layers[0][0].weight.detach().flatten()
    assert numbers[16 : 16 + 108].tolist() == kernel.tolist()
    assert numbers[124:131].tolist() == [9] * 7


@pytest.mark.parametrize(("change", "message"), [(-1, "it is cut, or of"), (1, "it is of another")])
def test_weights_of_another_network_are_refused(change, message, tmp_path):
    network = of(CONV, OUT, YOLO)
    before = [p.clone() for p in network.parameters()]
    count = sum(p.numel() for p in network.parameters())
    files.write_weights(tmp_path / "x.weights", np.ones(count + change, np.float32))
    with pytest.raises(SigakError, match=f"holds {count + change} numbers where .* {message}"):
        darknet_detect.load_weights(network, tmp_path / "x.weights")
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before))


DATA = Path(os.environ.get("SIGAK_DATA", ""))


@pytest.mark.data
def test_yolo_fastest_finds_the_dog():
    network, arguments = darknet_detect.adopt(
        DATA / "weights/yolo-fastest-1.1.cfg", DATA / "weights/yolo-fastest-1.1.weights"
    )
    assert arguments["size"] == (320, 320)
    assert count_parameters(network)[0] == 346_062  # (size of the file - 20 bytes) / 4
    preparation = image.Preparation((320, 320), resample="bilinear")
    pixels, matrix, _ = image.load(DATA / "photos/darknet-dog.jpg", preparation)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        (found,) = network.eval().decode(network.raw(images), (320, 320), 0.25)
    found = found[batched_nms(found.boxes, found.scores, found.labels, 0.45)]
    assert found.labels[:2].tolist() == [2, 16]  # the car and the dog
    scale = torch.tensor([matrix[0, 0], matrix[1, 1]] * 2).float()
    hand = torch.tensor([[466.0, 75, 692, 172], [131.0, 220, 310, 541]])  # drawn around them
    overlaps = iou(found.boxes[:2] / scale, hand).diag()
    assert (overlaps > 0.6).all()

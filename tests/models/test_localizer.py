"""One class and one box a picture: counts, targets, decoding, the loss, and learning."""

import math

import numpy as np
import pytest
import torch

from sigak import models
from sigak.data import scenes
from sigak.data.objects import to_instances
from sigak.models import localizer
from sigak.models._entry import count_parameters
from sigak.ops.boxes import area, iou
from sigak.structures import Instances

SIZE = (64, 96)


def build(classes=3, name="localizer", **changes):
    torch.manual_seed(0)
    return models.create(name, classes=classes, **models.entry(name).tiny | changes)


def objects(boxes, labels):
    return Instances(torch.tensor(boxes).reshape(-1, 4).float(), torch.tensor(labels).long())


NOTHING = objects([], [])


@pytest.mark.parametrize("name", localizer.MODELS)
def test_parameters_are_as_declared(name):
    with torch.device("meta"):
        network = models.create(name)
    assert count_parameters(network) == models.entry(name).parameters
    plain = count_parameters(network.backbone)[1]
    last = network.classifier.in_features
    box = last * 64 + 128 + (64 * 16 + 1) * 128 + 129 * 4
    assert count_parameters(network)[1] == plain + box + (last + 1) * 20


def test_decoding_by_hand():
    logits = torch.tensor([[0.0, math.log(6), 0.0], [0.0, 0.0, 0.0]])
    boxes = torch.tensor([[0.5, 0.25, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    sure, unsure = build().decode((logits, boxes), SIZE, 0.5)
    assert sure.boxes.tolist() == [[24, 0, 72, 32]]
    assert sure.labels.tolist() == [1]
    assert sure.scores.tolist() == pytest.approx([0.75])
    assert len(unsure) == 0
    assert len(build().decode((logits, boxes), SIZE, 0.3)[1]) == 1


def test_a_perfect_answer_costs_nothing_and_the_largest_object_is_learnt():
    truth = [objects([[0, 0, 10, 10], [24, 0, 72, 32]], [0, 1])]
    raw = torch.tensor([[0.0, 30.0, 0.0]]), torch.tensor([[0.5, 0.25, 0.5, 0.5]])
    assert build().loss(raw, truth, SIZE)["loss"] < 1e-5
    other = torch.tensor([[30.0, 0.0, 0.0]]), raw[1]
    assert build().loss(other, truth, SIZE)["cls"] > 20


def test_the_loss_by_hand():
    """The right half is said, all is true: GIoU 1/2; the centre is .25 and the width .5 off."""
    truth = [objects([[0, 0, 96, 64]], [0]), NOTHING]
    logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, math.log(2)]])
    boxes = torch.tensor([[0.75, 0.5, 0.5, 1.0], [0.1, 0.1, 0.1, 0.1]])
    losses = build().loss((logits, boxes), truth, SIZE)
    assert losses["box"].item() == pytest.approx(0.5 + (0.25 - 0.05) + (0.5 - 0.05))
    # The empty picture: a third each of log 4, log 4 and log 2.
    assert losses["cls"].item() == pytest.approx((math.log(3) + 5 / 3 * math.log(2)) / 2)
    assert losses["loss"] == losses["box"] + losses["cls"]


def test_pictures_without_objects_have_no_box_to_learn():
    network = build()
    losses = network(torch.rand(2, 3, *SIZE), [NOTHING, NOTHING])
    assert losses["box"] == 0
    assert losses["cls"] > 0
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_one_batch_is_learnt():
    drawn = [scenes.render(1, i, (64, 64), 3) for i in range(4)]
    images = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p, _ in drawn]) / 255
    truth = [to_instances(o, np.eye(3), (64, 64)) for _, o in drawn]
    network = build(classes=10)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):
        losses = network(images, truth)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        answer = network.decode(network.raw(images), (64, 64), 0.5)
    for found, one in zip(answer, truth, strict=True):
        largest = area(one.boxes).argmax()
        assert found.labels.tolist() == [one.labels[largest].item()]
        assert iou(found.boxes, one.boxes[largest][None]).item() > 0.5


def test_weights_of_a_classifier_are_those_of_the_backbone():
    import timm

    for name, row in localizer.MODELS.items():
        if not row.weights:
            continue
        with torch.device("meta"):
            published = timm.create_model(row.args["backbone"]).state_dict()
            network = models.create(name)
        ours = network.state_dict()
        converted = row.weights[0].convert(published)
        rest = {key for key in ours if not key.startswith(network.head)}
        assert rest == converted.keys()
        assert all(ours[key].shape == converted[key].shape for key in rest)

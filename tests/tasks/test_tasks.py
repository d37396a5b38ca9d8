"""Tasks: losses, answers and measures of classification in its three label modes."""

import csv
import json
import math

import numpy as np
import pytest
import torch

from sigak import tasks
from sigak.recipe import Recipe
from sigak.structures import Sample, SigakError

CLASSES = ["ant", "bee", "cow"]


def task(classes=CLASSES, **changes):
    return tasks.create("classify", classes, Recipe(**changes))


def batch(made, labels):
    samples = [
        Sample(np.full((4, 4, 1), 10 * i, np.uint8), f"x#{i}", i, label)
        for i, label in enumerate(labels)
    ]
    return made.collate(samples).floating()


def answers(*rows):
    """A network that gives these logits."""
    return lambda images: torch.tensor(rows, dtype=torch.float32)[: len(images)]


def test_no_two_answers_share_a_file():
    found = tasks.unique_stems(["a/x.jpg", "b/x.jpg", "x-2.png", "clip.mp4#3"])
    assert found == ["x", "x-2", "x-2-2", "clip"]


def test_every_task_keeps_the_protocol():
    assert tasks.TASKS == (
        "classify", "detect", "instances", "segment", "segment_volume", "generate", "prompt"
    )  # fmt: skip
    for name in tasks.TASKS:
        made = tasks.create(name, CLASSES, Recipe())
        assert isinstance(made, tasks.Task)
        assert made.name == name
        assert made.needs
    with pytest.raises(SigakError, match="no task called 'fly'; the tasks are classify, detect, "):
        tasks.create("fly", CLASSES, Recipe())


@pytest.mark.parametrize(("mode", "outputs"), [("int", 3), ("categorical", 3)])
def test_outputs(mode, outputs):
    assert task(label_mode=mode).outputs == outputs


def test_binary_takes_two_classes_and_one_output():
    assert task(["no", "yes"], label_mode="binary").outputs == 1
    with pytest.raises(SigakError, match="exactly 2 classes, the data has 3"):
        _ = task(label_mode="binary").outputs


def test_labels_by_mode():
    assert batch(task(), [2, 0]).labels.tolist() == [2, 0]
    one_hot = batch(task(label_mode="categorical"), [2, 0]).labels
    assert one_hot.tolist() == [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize("mode", ["int", "categorical"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_softmax_loss_by_hand(mode, smoothing):
    made = task(label_mode=mode, label_smoothing=smoothing)
    ((name, found),) = made.steps(answers([2, 0, 0], [0, 1, 0]), batch(made, [0, 2]))
    assert name == "main"

    def loss(logits, truth):
        total = math.log(sum(map(math.exp, logits)))
        weights = [smoothing / 3 + (1 - smoothing) * (k == truth) for k in range(3)]
        return sum(w * (total - x) for w, x in zip(weights, logits))

    expected = (loss([2, 0, 0], 0) + loss([0, 1, 0], 2)) / 2
    assert found["loss"].item() == pytest.approx(expected, rel=1e-6)
    assert found["accuracy"].item() == 0.5


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_sigmoid_loss_by_hand(smoothing):
    made = task(["no", "yes"], label_mode="binary", label_smoothing=smoothing)
    ((_, found),) = made.steps(answers([3.0], [-1.0]), batch(made, [1, 1]))
    truth = 1 - smoothing / 2
    chances = [1 / (1 + math.exp(-x)) for x in (3.0, -1.0)]
    by_hand = [-truth * math.log(p) - (1 - truth) * math.log(1 - p) for p in chances]
    assert found["loss"].item() == pytest.approx(sum(by_hand) / 2, rel=1e-6)
    assert found["accuracy"].item() == 0.5


def test_answers():
    made = task()
    first, second = made.predict(answers([0, 3, 1], [900, 0, -900]), batch(made, [0, 0]))
    assert (first.label, first.source) == ("bee", "x#0")
    assert first.scores == pytest.approx(np.exp([0, 3, 1]) / np.exp([0, 3, 1]).sum())
    assert first.score == first.scores[1]
    assert second.scores.tolist() == [1, 0, 0]
    assert str(first).startswith("bee 84.4%  cow 11.4%  ant 4.2%")
    binary = task(["no", "yes"], label_mode="binary")
    (answer,) = binary.predict(answers([math.log(3)]), batch(binary, [0]))
    assert answer.label == "yes"
    assert answer.scores == pytest.approx([0.25, 0.75])


def test_the_measure_matches_the_loss():
    made = task()
    given = batch(made, [0, 2])
    network = answers([2, 0, 0], [0, 1, 0])
    measure = made.metric()
    measure.update(made.predict(network, given), given)
    ((_, found),) = made.steps(network, given)
    figures = measure.compute()
    assert figures["count"] == 2
    assert figures["accuracy"] == 0.5
    assert figures["loss"] == pytest.approx(found["loss"].item(), rel=1e-6)


def test_a_certain_mistake_has_a_finite_loss():
    made = task()
    given, measure = batch(made, [1]), made.metric()
    measure.update(made.predict(answers([5000, -5000, 0]), given), given)
    assert 700 < measure.compute()["loss"] < 800


def test_pictures_without_labels_are_refused():
    made = task()
    given = batch(made, [None])
    assert len(made.predict(answers([1, 0, 0]), given)) == 1
    with pytest.raises(SigakError, match="needs labelled pictures"):
        next(made.steps(answers([1, 0, 0]), given))


def test_augmentation_comes_from_the_recipe():
    assert task(augment="none").augment((8, 8)) is None
    assert task(augment="flip=h").augment((8, 8))
    with pytest.raises(SigakError, match="did you mean flip"):
        task(augment="flop=h").augment((8, 8))


def test_saving(tmp_path):
    made = task(["ant", "bee, or wasp", "소"])
    results = made.predict(answers([0, 3, 1], [0, 0, 5]), batch(made, [0, 0]))
    as_json, as_csv = made.save(results, tmp_path / "new")
    assert json.loads(as_json.read_text(encoding="utf-8")) == [r.asdict() for r in results]
    with open(as_csv, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["source", "label", "score", "ant", "bee, or wasp", "소"]
    assert [float(x) for x in rows[2][3:]] == results[1].scores.tolist()


def test_drawing_keeps_the_picture_and_writes_below_it():
    made = task()
    (result,) = made.predict(answers([0, 3, 1]), batch(made, [0]))
    drawn = made.draw(np.full((40, 60, 3), 200, np.uint8), result)
    assert drawn.dtype == np.uint8
    assert drawn.shape[2] == 3
    assert drawn.shape[0] > 40

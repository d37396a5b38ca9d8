"""The lab: several networks on the same data, what is written of them, and where it goes on."""

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import sigak
from sigak.comparison import Comparison, Published, Row
from sigak.lab import compare
from sigak.models.lab import MODELS
from sigak.report import write_comparison
from sigak.structures import Failure, SigakError
from sigak.training import Training

QUICK = {"size": 8, "epochs": 2, "batch": 64, "quiet": True, "precision": "float32"}


def few_digits(**changes):
    """A few of the digits: 4 batches an epoch."""
    digits = sigak.load_data("digits")
    sizes = {"train": 256, "val": 64, "test": 64}
    few = {name: digits.splits[name].subset(np.arange(n), name) for name, n in sizes.items()}
    return replace(digits, splits=few, **changes)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two networks of the lab on a few digits."""
    out = tmp_path_factory.mktemp("lab")
    return compare(few_digits(), ["vgg3", "vgg3-dropout"], out=str(out), lr=0.05, **QUICK)


def weights(folder):
    with safe_open(Path(folder) / "best.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118


def table(folder):
    with open(folder / "comparison.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, path):
        super().__init__()
        self.source = Path(path).read_text("utf-8")
        self.tags, self.text, self.open = [], "", []
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] != "style":
            self.text += text


# ------------------------------------------------------------------ what a comparison says


def test_rows_are_what_evaluate_measures(pair):
    assert [row.model for row in pair.rows] == ["vgg3", "vgg3-dropout"]
    for row in pair.rows:
        folder = pair.folder / row.model
        for split in ("train", "val", "test"):
            expected = sigak.evaluate(folder, pair.dataset, split=split)["accuracy"]
            assert getattr(row, f"{split}_accuracy") == pytest.approx(expected)
        assert row.gap == pytest.approx(row.train_accuracy - row.val_accuracy)
        network = sigak.load(folder).network
        assert row.parameters == sum(p.numel() for p in network.parameters())
        best = min(range(row.epochs), key=row.history["val_loss"].__getitem__) + 1
        assert (row.epochs, row.best_epoch) == (2, best)
        assert row.seconds == pytest.approx(sum(row.history["seconds"]))
        assert row.diagnosis.startswith("Train accuracy")
        assert (pair.folder / row.report).is_file()


def test_the_csv_holds_the_rows(pair):
    for line, row in zip(table(pair.folder), pair.rows, strict=True):
        assert line["model"] == row.model
        assert float(line["test_accuracy"]) == row.test_accuracy
        assert line["failure"] == line["published_accuracy"] == ""


def test_json_holds_everything(pair):
    told = json.loads(json.dumps(pair.asdict(), allow_nan=False))
    assert told["chosen"] in ("vgg3", "vgg3-dropout")
    assert told["data"]["counts"] == {"train": 256, "val": 64, "test": 64}
    assert told["command"] == (
        "sigak lab digits vgg3 vgg3-dropout --lr 0.05 --size 8 --epochs 2 --batch 64 "
        "--precision float32"
    )
    [effect] = told["effects"]
    first, second = told["models"]
    assert effect["change"] == pytest.approx(second["test_accuracy"] - first["test_accuracy"])


def test_the_page_is_whole_and_asks_for_nothing(pair):
    page = Page(pair.folder / "comparison.html")
    assert page.open == []
    assert not re.search(r"https?:|<script|url\(", page.source)
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert {"vgg3/report.html", "vgg3-dropout/report.html"} <= set(links)
    assert all((pair.folder / link).exists() for link in links if not link.startswith("#"))
    anchors = {a["id"] for _, a in page.tags if "id" in a}
    assert {link[1:] for link in links if link.startswith("#")} == anchors
    assert sum(tag == "svg" for tag, _ in page.tags) == 4
    lines = [a["class"] for tag, a in page.tags if a.get("class", "").startswith("line ")]
    assert lines == ["line hue0", "line hue1 broken"] * 4
    for words in (pair.advice, *pair.findings, *(row.diagnosis for row in pair.rows)):
        assert words.replace(" %", "\xa0%") in page.text


def test_published_figures_stand_beside_those_of_cifar10_alone(pair, tmp_path):
    renamed = few_digits(name="cifar10")
    found = compare(renamed, "vgg1", out=str(tmp_path), **QUICK | {"epochs": 1})
    assert found.rows[0].published == Published(0.6707, 100)
    assert table(tmp_path)[0]["published_epochs"] == "100"
    assert "Beside the published figures" in Page(tmp_path / "comparison.html").text
    assert pair.rows[0].published is None
    assert "published" not in Page(pair.folder / "comparison.html").text


def test_without_validation_pictures_nothing_is_chosen(tmp_path):
    found = compare("digits", "vgg1", out=str(tmp_path), val=0.0, **QUICK | {"batch": 512})
    [row] = found.rows
    assert row.val_accuracy is None
    assert row.gap == pytest.approx(row.train_accuracy - row.test_accuracy)
    assert found.chosen == ""
    assert "--val 0.1" in found.advice


# ------------------------------------------------------------------ the words, by hand


def row(model, val, test, parameters=1000, published=None, best=5):
    accuracies = {"train_accuracy": 0.9, "val_accuracy": val, "test_accuracy": test}
    return Row(
        model, parameters, parameters, epochs=10, best_epoch=best, **accuracies, gap=0.9 - val,
        seconds=1.0, images_per_second=1.0, history={"loss": [2.0, 1.0]}, diagnosis="",
        published=published, report=f"{model}/report.html",
    )  # fmt: skip


def told(*rows):
    """A comparison of such rows, as if on digits (143 pictures for validation, 359 for test)."""
    return Comparison(Path("."), sigak.load_data("digits"), "", {}, list(rows))


def test_an_effect_is_a_difference_with_its_margin():
    found = told(
        row("vgg3", 0.7, 0.60, published=Published(0.70, 100)),
        row("vgg3-dropout", 0.8, 0.80, published=Published(0.83, 100)),
        row("vgg3-l2", 0.7, 0.62),
        row("vgg3-aug", 0.7, 0.50, published=Published(0.85, 100, "another")),
    )
    dropout, l2, augmentation = found.effects
    assert dropout.change == pytest.approx(0.2)
    # 1.96 * sqrt((0.6 * 0.4 + 0.8 * 0.2) / 359)
    assert dropout.margin == pytest.approx(0.06542, abs=1e-5)
    assert dropout.published == pytest.approx(0.13)
    assert [e.verdict for e in found.effects] == ["helps", "within chance", "hurts"]
    assert l2.published is augmentation.published is None
    assert found.findings == [
        "Against vgg3 (60.0 % on test): dropout +20.0 points, L2 +2.0 points (within chance), "
        "augmentation −10.0 points."
    ]


def test_the_best_on_validation_is_taken_whatever_the_test_says():
    found = told(row("a", 0.60, 0.99), row("b", 0.95, 0.70))
    assert found.chosen == "b"
    assert found.advice == "Take b: 95.0 % on validation, 70.0 % on test."


def test_what_validation_cannot_tell_apart_is_named_with_the_smallest():
    found = told(row("a", 0.95, 0.9, 9000), row("b", 0.94, 0.9, 3000), row("c", 0.5, 0.5, 10))
    assert found.advice == (
        "Take a: 95.0 % on validation, 90.0 % on test. 143 validation pictures cannot tell it "
        "from b (94.0 %). Of these b is the smallest, with 3,000 parameters instead of 9,000."
    )


def test_equals_are_decided_by_size():
    assert told(row("a", 0.9, 0.9, 9000), row("b", 0.9, 0.9, 3000)).chosen == "b"


def test_networks_that_had_not_finished_learning_are_not_judged():
    late = [row(name, 0.5, 0.5, best=10) for name in ("a", "b")]
    [warning] = told(*late, row("c", 0.5, 0.5)).findings
    assert warning.startswith("2 of 3 networks were at their best in their last epoch")
    assert "--epochs 20" in warning
    assert told(*late, row("c", 0.5, 0.5), row("d", 0.5, 0.5)).findings == []


def test_names_are_escaped_and_thirty_lines_differ(tmp_path):
    names = [f"<u>{i}" for i in range(30)]
    found = told(*(row(name, 0.5, 0.5) for name in names))
    found.failures["<u>"] = "a < b"
    page = Page(write_comparison(tmp_path / "page.html", found.asdict()))
    assert "<u>7" in page.text
    assert "a < b" in page.text
    assert "u" not in {tag for tag, _ in page.tags}
    keys = [a["class"] for tag, a in page.tags if tag == "i" and "hue" in a.get("class", "")]
    assert len(set(keys)) == 30


def test_a_page_without_a_trained_network(tmp_path):
    found = told()
    found.failures["vgg1"] = "no"
    page = Page(write_comparison(tmp_path / "page.html", found.asdict()))
    assert "No network was trained." in page.text


# ------------------------------------------------------------------ going on where it stopped


def stamps(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}


def test_the_same_command_again_trains_nothing(pair):
    before = stamps(pair.folder)
    again = compare(few_digits(), ["vgg3", "vgg3-dropout"], out=str(pair.folder), lr=0.05, **QUICK)
    assert stamps(pair.folder) == before
    assert again.rows == pair.rows


def test_an_interrupted_comparison_goes_on_exactly(pair, tmp_path, monkeypatch):
    """Cut in the middle of the second network: the first stays as it is, the second ends as if
    nothing had been.
    """
    monkeypatch.chdir(tmp_path)
    original, steps = Training.train_step, []

    def step(self, item):
        if len(steps) == 8 + 6:  # the first network's 2 epochs of 4 steps, and 1.5 of the second's
            raise KeyboardInterrupt
        steps.append(item)
        original(self, item)

    def start():
        return compare(few_digits(), ["vgg3", "vgg3-dropout"], lr=0.05, save_every=0.0, **QUICK)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "train_step", step)
        with pytest.raises(Failure, match="interrupted at vgg3-dropout; the same command"):
            start()
    assert [line["model"] for line in table(Path("runs/lab-digits"))] == ["vgg3"]
    before = stamps(Path("runs/lab-digits/vgg3"))
    found = start()
    assert stamps(Path("runs/lab-digits/vgg3")) == before
    for mine, theirs in zip(found.rows, pair.rows, strict=True):
        assert weights(found.folder / mine.model) == weights(pair.folder / theirs.model)
        assert mine.history["val_loss"] == theirs.history["val_loss"]


def test_more_epochs_go_on_and_fewer_are_refused(tmp_path):
    changes = {"out": str(tmp_path / "lab"), **QUICK}
    first = compare(few_digits(), "vgg1", **changes).rows[0]
    longer = compare(few_digits(), "vgg1", **changes | {"epochs": 3}).rows[0]
    assert longer.epochs == 3
    assert longer.history["loss"][:2] == first.history["loss"]
    with pytest.raises(SigakError, match=r"--epochs was 3 when .*vgg1 was trained, and is 2 now"):
        compare(few_digits(), "vgg1", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.1}, "--lr was 0.05 when .*vgg3 was trained, and is 0.1 now"),
        ({"early_stop": 3}, "--early-stop was 0 when"),
        ({"seed": 1}, "--seed was 0 when"),
        ({"resume": "there"}, "leave out --resume"),
        ({"learning_rate": 1}, "a recipe has no field 'learning_rate'"),
        ({"models": ["vgg3", "vgg33"]}, "vgg33"),
    ],
)
def test_another_comparison_in_the_same_folder_is_refused(pair, changes, message):
    before = stamps(pair.folder)
    asked = {"models": ["vgg3"], "out": str(pair.folder), "lr": 0.05, **QUICK}
    with pytest.raises(SigakError, match=message):
        compare(few_digits(), **asked | changes)
    assert stamps(pair.folder) == before


def test_other_data_or_another_network_in_the_folder_is_refused(pair, folder, tmp_path):
    changes = {"out": str(pair.folder), "lr": 0.05, **QUICK}
    with pytest.raises(SigakError, match=r"the data is not what .*vgg3 was trained on"):
        compare(folder(), "vgg3", **changes)
    (pair.folder / "vgg3").rename(tmp_path / "vgg1")
    try:
        with pytest.raises(SigakError, match="holds a run of vgg3, not of vgg1"):
            compare(few_digits(), "vgg1", **changes | {"out": str(tmp_path)})
    finally:
        (tmp_path / "vgg1").rename(pair.folder / "vgg3")


def test_a_file_is_no_folder_and_many_processes_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(SigakError, match="--out expects a folder"):
        compare(few_digits(), "vgg1", out=str(tmp_path / "file"), **QUICK)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SigakError, match="runs in one process"):
        compare(few_digits(), "vgg1", out=str(tmp_path / "out"), **QUICK)


# ------------------------------------------------------------------ the command line


def test_one_network_that_fails_does_not_stop_the_others(sigak_cli):
    """vgg3 halves its pictures three times, which 4 x 4 pixels do not allow."""
    words = ("--size", 4, "--epochs", 1, "--batch", 512, "--quiet", "--out", "lab", "--json")
    done = sigak_cli("lab", "digits", "vgg3", "vgg1", *words)
    assert done.code == 1
    assert "1 of 2 networks could not be trained. vgg3: a network of 3 blocks needs" in done.err
    told = json.loads(done.out)
    assert [r["model"] for r in told["models"]] == ["vgg1"]
    assert told["failures"][0]["model"] == "vgg3"
    lines = {line["model"]: line for line in table(Path("lab"))}
    assert "at least 8x8" in lines["vgg3"]["failure"]
    assert "at least 8x8" in Page("lab/comparison.html").text


def test_the_ten_networks_of_the_lab(sigak_cli, folder):
    folder(size=(8, 8))
    done = sigak_cli("lab", "pets", "--size", 8, "--epochs", 1, "--quiet")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines[1:11]] == list(MODELS)
    assert lines[-1].startswith("Take vgg")
    assert "% on validation): " in done.out  # there is no test split to measure effects on
    assert done.err == f"comparison {Path('runs/lab-pets/comparison.html')}\n"

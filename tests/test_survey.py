"""Networks side by side: true figures, honest gaps, and files other programs read."""

import csv
import json

import pytest
import torch
from torch import nn

from sigak import models, survey
from sigak.models._entry import Entry, Input
from sigak.models._published import CLASSICS
from sigak.structures import Failure, SigakError

QUICK = {"batch": 2, "seconds": 0.02}


def test_figures_of_the_classics_are_those_of_the_books():
    found = survey.compare(["vgg16", "resnet50", "lenet5"], speed=False)
    vgg, resnet, lenet = found.rows
    assert round(vgg.megabytes) == 528
    assert round(resnet.megabytes) == 98
    assert (vgg.depth, resnet.depth, lenet.depth) == (16, 50, 5)
    assert (vgg.parameters, vgg.trainable) == (138_357_544, 138_357_544)
    assert (resnet.top1, resnet.source) == (81.214, "timm a1_in1k, 288 px")
    assert [s.source for s in resnet.published] == ["timm a1_in1k", "timm tv_in1k", "keras.io"]
    assert (lenet.top1, lenet.top5, lenet.source) == (None, None, "")
    assert all(row.images_per_second is None and row.rounds == 0 for row in found.rows)
    assert "images/s:" not in " ".join(found.notes)


def test_speed_is_measured_and_leaves_no_trace():
    state = torch.random.get_rng_state()
    said: list[str] = []
    found = survey.compare(["mlp", "lenet5"], progress=said.append, device="cpu", **QUICK)
    assert torch.equal(state, torch.random.get_rng_state())
    assert said == ["1 of 2: mlp", "2 of 2: lenet5"]
    for row in found.rows:
        assert row.images_per_second > 0
        assert row.rounds >= 1
    assert "float32, batches of 2" in found.notes[1]


def test_a_slower_network_is_seen_to_be_slower():
    rows = survey.compare(["vgg3", "mlp"], batch=16, seconds=0.1, device="cpu").rows
    speed = {row.name: row.images_per_second for row in rows}
    assert speed["mlp"] > 3 * speed["vgg3"]


def test_names_and_patterns():
    assert survey.choose() == list(CLASSICS)
    assert survey.choose(["resnet50", "vgg3*"])[:2] == ["resnet50", "vgg3"]
    assert "resnet50-keras" in survey.choose(["snet50-"])
    with pytest.raises(SigakError, match=r"no network is called like 'vgg33'; did you mean .*vgg3"):
        survey.choose(["vgg33"])
    with pytest.raises(SigakError, match="dcgan: these networks do not classify"):
        survey.choose(["dcgan"])


def test_the_best_stands_first_and_the_unknown_last():
    found = survey.compare(["lenet5", "alexnet", "mobilenetv2"], speed=False)
    orders = {
        "top1": ["mobilenetv2", "alexnet", "lenet5"],
        "megabytes": ["lenet5", "mobilenetv2", "alexnet"],
        "name": ["alexnet", "lenet5", "mobilenetv2"],
    }
    for column, names in orders.items():
        found.sort(column)
        assert [row.name for row in found.rows] == names


class Broken(nn.Module):
    """A network that is built and cannot run."""

    def __init__(self, **_):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, images):
        return self.layer(images)


def test_a_network_that_fails_is_named_and_left_out(monkeypatch):
    mlp = models.import_module("sigak.models.mlp")
    monkeypatch.setitem(mlp.MODELS, "broken", Entry(Broken, "classify", Input((4, 4)), (12, 12)))
    said: list[str] = []
    found = survey.compare(["broken", "mlp"], progress=said.append, device="cpu", **QUICK)
    assert [row.name for row in found.rows] == ["mlp"]
    assert list(found.failures) == ["broken"]
    assert said[1].startswith("left out broken: ")
    with pytest.raises(Failure, match="none of the networks"):
        survey.compare(["broken"], **QUICK)


def test_what_may_not_fit_in_memory_is_not_tried():
    found = survey.compare(["mlp", "vgg3"], batch=10**10, speed=False)
    assert not found.failures
    said: list[str] = []
    with pytest.raises(Failure):
        survey.compare(["vgg3"], batch=10**10, device="cpu", progress=said.append)
    assert "GB of memory" in said[-1]
    assert "smaller --batch" in said[-1]


def test_mistakes_are_found_before_minutes_are_spent():
    with pytest.raises(SigakError, match=r"--sort must be one of name, .*'top'"):
        survey.check("top", [])
    with pytest.raises(SigakError, match=r"--out must end in .csv"):
        survey.check("", ["a.png", "a.txt"])
    with pytest.raises(SigakError, match="batch of 1 or more"):
        survey.compare(["mlp"], batch=0)


def test_the_command_writes_tables_and_a_chart(sigak_cli, tmp_path):
    words = ["models", "--compare", "squeezenet", "mlp", "--seconds", "0.01", "--batch", "1"]
    done = sigak_cli(
        *words, "--sort", "parameters", "--out", "t.csv", "--out", "t.json", "--out", "t.png"
    )
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()[:3]] == ["name", "mlp", "squeezenet"]
    assert "torchvision IMAGENET1K_V1, 224 px" in done.out
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["mlp", "squeezenet"]
    assert (rows[0]["top1"], rows[1]["top1"]) == ("", "58.178")
    assert rows[1]["depth"] == "18"
    assert json.loads((tmp_path / "t.json").read_text("utf-8"))["rows"][0]["name"] == "mlp"
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_in_json_and_without_speed(sigak_cli):
    found = json.loads(sigak_cli("models", "--compare", "mlp", "--no-speed", "--json").out)
    assert found["rows"][0]["multiply_adds"] == 101_632
    assert found["batch"] == 16
    assert sigak_cli("models", "--compare", "mlp", "--sort", "beauty").code == 2
    assert sigak_cli("models", "--compare", "mlp", "--no-speed", "--out", "chart.png").code == 2


def test_the_list_takes_several_names(sigak_cli):
    rows = json.loads(sigak_cli("models", "vgg3-aug", "lenet5", "--json").out)
    assert [row["name"] for row in rows] == ["vgg3-aug", "lenet5"]
    assert sigak_cli("models", "vgg3", "lenet5", "--summary").code == 2
    assert "did you mean" in sigak_cli("models", "lenet55").err

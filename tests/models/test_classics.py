"""The classics are found by their familiar names, with the counts that are published for them."""

import re

import pytest
import torch

from sigak import models
from sigak.models import classics
from sigak.models._entry import count_parameters

# name: (total, trainable) as published by Keras, or None where Keras has no such network.
KERAS = {
    "vgg16": (138_357_544, 138_357_544),
    "vgg19": (143_667_240, 143_667_240),
    "resnet50": (25_636_712, 25_583_592),
    "resnet101": (44_707_176, 44_601_832),
    "resnet152": (60_419_944, 60_268_520),
    "resnet50v2": (25_613_800, 25_568_360),
    "resnet101v2": (44_675_560, 44_577_896),
    "resnet152v2": (60_380_648, 60_236_904),
    "inceptionv3": (23_851_784, 23_817_352),
    "inceptionresnetv2": (55_873_736, 55_813_192),
    "xception": (22_910_480, 22_855_952),
    "mobilenet": (4_253_864, 4_231_976),
    "mobilenetv2": (3_538_984, 3_504_872),
    "densenet121": (8_062_504, 7_978_856),
    "densenet169": (14_307_880, 14_149_480),
    "densenet201": (20_242_984, 20_013_928),
    "nasnetmobile": (5_326_716, 5_289_978),
    "nasnetlarge": (88_949_818, 88_753_150),
    "efficientnetb0": (5_330_571, 5_288_548),
    "efficientnetb1": (7_856_239, 7_794_184),
    "efficientnetb2": (9_177_569, 9_109_994),
    "efficientnetb3": (12_320_535, 12_233_232),
    "efficientnetb4": (19_466_823, 19_341_616),
    "efficientnetb5": (30_562_527, 30_389_784),
    "efficientnetb6": (43_265_143, 43_040_704),
    "efficientnetb7": (66_658_687, 66_347_960),
}
# Trainable parameters of those Keras does not have.
OTHERS = {
    "lenet5": 61_706,
    "alexnet": 61_100_840,
    "googlenet": 6_624_904,
    "resnet18": 11_689_512,
    "squeezenet": 1_235_496,
    "shufflenet": 1_865_728,
    "darknet19": 20_842_376,
    "darknet53": 41_609_928,
    "convmixer": 21_110_248,
    "vit-tiny-16": 5_717_416,
    "vit-small-16": 22_050_664,
    "vit-base-16": 86_567_656,
    "vit-large-16": 304_326_632,
}


def built_count(name):
    with torch.device("meta"):
        return count_parameters(models.create(name))


@pytest.mark.parametrize("name", KERAS)
def test_counts_are_those_of_keras_or_the_note_says_by_how_much_not(name):
    row = models.entry(name)
    assert built_count(name) == row.parameters
    difference = row.parameters[0] - KERAS[name][0]
    if difference == 0:
        assert row.parameters == KERAS[name]
    else:
        number, word = re.match(r"([\d,]+) (fewer|more) than Keras's", row.note).groups()
        assert int(number.replace(",", "")) * {"fewer": -1, "more": 1}[word] == difference


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_classics_have_their_counts(name):
    assert built_count(name) == models.entry(name).parameters
    assert models.entry(name).parameters[1] == OTHERS[name]


@pytest.mark.parametrize("name", ["squeezenet", "efficientnetb0", "vit-tiny-16", "mobilenetv2"])
def test_they_run(name):
    network = models.create(name, classes=3, **models.entry(name).tiny).eval()
    side = models.entry(name).tiny["size"][0]
    with torch.no_grad():
        assert network(torch.rand(2, 3, side, side)).shape == (2, 3)


def test_their_weights_come_with_them():
    for name in classics.MODELS.keys() - {"resnet152v2"}:  # of that one timm publishes none
        assert models.entry(name).weights, name


def test_notes_are_shown(sigak_cli):
    import json

    done = sigak_cli("models", "resnet50v2", "--json")
    facts, *_ = json.loads(done.out)
    assert facts["note"].startswith("19,008 fewer than Keras's 25,613,800")

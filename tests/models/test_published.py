"""Published figures are those their publishers give, and belong to networks that exist."""

import pytest
from torchvision.models import get_model_weights

from sigak import models
from sigak.models import _published, torchvision_nets
from sigak.models._published import CLASSICS, SOURCES, scores


def test_every_figure_belongs_to_a_network_and_has_a_source():
    names = set(models.names())
    assert set(_published._table()) <= names
    assert set(CLASSICS) <= names
    for name, rows in _published._table().items():
        for score in rows:
            assert score.source.split()[0] in SOURCES, name
            assert 50 < score.top1 < 90, name
            assert score.top5 is None or score.top1 < score.top5 < 100, name


def test_the_first_figure_is_of_the_default_weights():
    """Where it comes from a publisher whose weights the network can take."""
    for name, rows in _published._table().items():
        publisher, *tag = rows[0].source.split()
        weights = [w.tag for w in models.entry(name).weights]
        if publisher == "timm":
            assert tag == weights[:1], name
        if publisher == "torchvision":
            assert weights[0] == "tv_in1k", name
        if publisher == "keras.io":
            assert weights in ([], ["keras"]), name


@pytest.mark.parametrize("name", torchvision_nets.MODELS)
def test_figures_of_torchvision_are_its_own(name):
    meta = get_model_weights(name)["IMAGENET1K_V1"].meta["_metrics"]["ImageNet-1K"]
    [score] = scores(name)
    assert (score.top1, score.top5) == (meta["acc@1"], meta["acc@5"])
    assert models.entry(name).weights[0].score["top1"] == score.top1


def test_what_is_not_known_is_empty():
    assert scores("lenet5") == scores("nonsense") == ()

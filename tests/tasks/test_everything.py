"""Masks of everything by a network that has learnt, beside the publisher's package."""

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor

import sigak
from sigak.data import Dataset, scenes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
LEARNT = 16  # scenes it knows by heart: what counts here is that its masks mean something
SETTINGS = [
    {"points_per_side": 8},
    {"points_per_side": 16},
    {"points_per_side": 32},
    {"pred_iou_thresh": 0.7, "stability_score_thresh": 0.8},
    {"pred_iou_thresh": 0.95, "stability_score_thresh": 0.9},
    {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.5, "box_nms_thresh": 0.9},
    {"pred_iou_thresh": 0.6, "stability_score_thresh": 0.7, "box_nms_thresh": 0.3},
    {"pred_iou_thresh": 0.6, "stability_score_thresh": 0.7, "min_area": 100},
    {"pred_iou_thresh": 0.7, "stability_score_thresh": 0.8, "crop_layers": 1},
    {"pred_iou_thresh": 0.6, "stability_score_thresh": 0.7, "crop_layers": 1, "min_area": 40,
     "crop_points_downscale": 2, "box_nms_thresh": 0.5},
]  # fmt: skip
THEIR_NAMES = {
    "crop_layers": "crop_n_layers",
    "crop_points_downscale": "crop_n_points_downscale_factor",
    "min_area": "min_mask_region_area",
}
PICTURES = ["known", "another", "new", "wide", "high"]


def picture(name):
    """Scenes it has learnt, alone and as one larger picture; scenes it has not."""
    if name == "new":
        return scenes.render(5, 1, (128, 128))[0]
    if name == "wide":
        return scenes.render(5, 2, (200, 300))[0]
    known = [scenes.render(0, index, (128, 128))[0] for index in range(4)]
    return {"known": known[0], "another": known[1], "high": np.concatenate(known[2:])}[name]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, sam_of_publisher):
    """(a predictor, the publisher's network with the same weights)."""
    torch.set_num_threads(1)
    whole = scenes.read(f"scenes:{LEARNT}@128")
    run = sigak.train(
        "sam-nano",
        Dataset(whole.name, whole.classes, {"train": whole.splits["train"]}),
        epochs=200,
        val=0.0,
        augment="none",
        precision="float32",
        out=str(tmp_path_factory.mktemp("learnt") / "run"),
        quiet=True,
    )
    assert run.history["iou"][-1] > 0.9
    predictor = sigak.load(run.checkpoint)
    return predictor, sam_of_publisher(predictor.engine.network, predictor.header["arguments"])


def overlap(ours, theirs):
    return (ours & theirs).sum() / (ours | theirs).sum()


@pytest.mark.parametrize("name", PICTURES)
def test_embeddings_and_coarse_masks_agree(name, learnt):
    predictor, theirs = learnt
    pixels = picture(name)
    session, reference = sigak.Session(predictor, pixels), SamPredictor(theirs)
    reference.set_image(pixels)
    torch.testing.assert_close(session.embedding, reference.features, atol=1e-4, rtol=0)
    height, width = pixels.shape[:2]
    for x, y in np.random.default_rng(0).random((8, 2)) * (width, height):
        _, quality, coarse = reference.predict(np.array([[x, y]]), np.array([1]))
        found = session.ask(points=[(x, y)], every=True)
        for one, score, logits in zip(found.segments, quality, coarse, strict=True):
            assert one.quality == pytest.approx(score, abs=1e-4)
            np.testing.assert_allclose(one.coarse, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_same_masks_in_the_same_order(settings, learnt):
    predictor, theirs = learnt
    settings = {"points_per_side": 16} | settings
    names = {THEIR_NAMES.get(name, name): value for name, value in settings.items()}
    counted = 0
    for name in PICTURES:
        pixels = picture(name)
        expected = SamAutomaticMaskGenerator(theirs, **names).generate(pixels)
        found = sigak.Session(predictor, pixels).everything(**settings)
        assert len(found) == len(expected), name
        for one, mask, other in zip(found.segments, found.masks, expected, strict=True):
            assert one.quality == pytest.approx(other["predicted_iou"], abs=1e-4)
            assert overlap(mask, other["segmentation"]) > 0.99
        counted += len(found)
    assert counted >= 4


def test_half_finds_most_of_them(learnt):
    """A small network is unsure of many masks: what is close to a threshold comes or goes."""
    predictor, _ = learnt
    settings = {"points_per_side": 16, "pred_iou_thresh": 0.6, "stability_score_thresh": 0.7}
    whole = found = 0
    for name in PICTURES:
        session = sigak.Session(predictor, picture(name))
        exact, half = session.everything(**settings), session.everything(**settings, half=True)
        whole += len(exact)
        found += sum(max(overlap(a, b) for b in half.masks) > 0.9 for a in exact.masks)
    assert whole > 50
    assert found >= 0.9 * whole

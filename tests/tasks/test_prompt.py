"""Prompts in the file's frame, everything beside the publisher's generator, saving, learning."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.utils.amg import build_point_grid, generate_crop_boxes

import sigak
from sigak import models, tasks
from sigak.data import scenes
from sigak.errors import SigakError
from sigak.io import image
from sigak.io import weights as files
from sigak.recipe import Recipe
from sigak.structures import Batch, Instances, Sample
from sigak.tasks._everything import crops, grid
from sigak.tasks.prompt import Question

SIDE = 256
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def form(**changes):
    return models.arguments("sam-b", **models.entry("sam-b").tiny | {"size": (SIDE,) * 2} | changes)


def write(path, network, built):
    preparation = image.Preparation((SIDE, SIDE), "rgb", "longest", resample="antialias")
    header = files.header(
        "sam-b", "prompt", built, ["object"], preparation=preparation.asdict(), recipe={},
        scores={}, data={},
    )  # fmt: skip
    files.write(path, network.state_dict(), header)
    return path


@pytest.fixture
def photo(tmp_path):
    pixels, _ = scenes.render(0, 3, (200, 301))
    image.save(tmp_path / "photo.png", pixels)
    return tmp_path / "photo.png"


@pytest.fixture
def checkpoint(sam_pair, tmp_path):
    built = form()
    return write(tmp_path / "sam.safetensors", sam_pair(built)[0], built)


def lively(pair, seed):
    """A network and the publisher's, with weights that give many masks, predicted about as good."""
    built = form()
    both = pair(built, seed=seed, spread=0.3)
    for network in both:
        decoder = network.mask_decoder
        for part in decoder.output_hypernetworks_mlps:
            part.layers[2].weight.data *= 20
            part.layers[2].bias.data.fill_(0)
        decoder.iou_prediction_head.layers[2].weight.data *= 0.02
        decoder.iou_prediction_head.layers[2].bias.data.fill_(0.6)
    return built, *both


# ------------------------------------------------------------------ beside the publisher's


def overlap(ours, theirs):
    both, either = (ours & theirs).sum(), (ours | theirs).sum()
    return both / either if either else 1.0


ASKED = [
    {"points": [(150.5, 90)]},
    {"points": [(150.5, 90), (20, 180, 0)]},
    {"box": (30, 20.5, 200, 150)},
    {"points": [(100, 60), (40, 40, 0)], "box": (30, 20.5, 200, 150)},
]


@pytest.mark.parametrize("how", ASKED)
def test_prompts_are_answered_as_by_the_publisher(how, sam_pair, photo, tmp_path):
    built, network, theirs = lively(sam_pair, 6)
    session = sigak.Session(write(tmp_path / "x.safetensors", network, built), photo)
    predictor = SamPredictor(theirs)
    predictor.set_image(image.read(photo))
    torch.testing.assert_close(session.embedding, predictor.features, atol=1e-4, rtol=1e-4)
    points = how.get("points")
    given = {
        "point_coords": None if points is None else np.array([p[:2] for p in points]),
        "point_labels": None if points is None else np.array([(*p, 1)[2] for p in points]),
        "box": None if "box" not in how else np.array(how["box"]),
    }
    masks, quality, coarse = predictor.predict(**given, multimask_output=True)
    found = session.ask(**how, every=True)
    assert len(found) == 3
    for one, mask, score, logits in zip(found.segments, masks, quality, coarse, strict=True):
        assert one.quality == pytest.approx(score, abs=1e-4)
        np.testing.assert_allclose(one.coarse, logits, atol=1e-3, rtol=1e-3)
        assert overlap(one.region.mask(found.size), mask) > 0.99
    [best] = session.ask(**how).segments
    if how == ASKED[0]:
        assert best.quality == pytest.approx(max(quality), abs=1e-4)
    else:
        masks, quality, _ = predictor.predict(**given, multimask_output=False)
        assert best.quality == pytest.approx(quality[0], abs=1e-4)
        assert overlap(best.region.mask(found.size), masks[0]) > 0.99
    again = session.ask(**how, mask=best.coarse)
    _, quality, _ = predictor.predict(**given, mask_input=best.coarse[None], multimask_output=False)
    assert again.segments[0].quality == pytest.approx(quality[0], abs=1e-4)


SETTINGS = [
    {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 0.9},
    {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.3},
    {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.3, "crop_layers": 1,
     "crop_points_downscale": 2, "box_nms_thresh": 0.95, "crop_nms_thresh": 0.9},
    {"pred_iou_thresh": 0.3, "stability_score_thresh": 0.3, "min_area": 5},
]  # fmt: skip
THEIR_NAMES = {
    "crop_layers": "crop_n_layers",
    "crop_points_downscale": "crop_n_points_downscale_factor",
    "min_area": "min_mask_region_area",
}


@pytest.mark.parametrize(
    ("settings", "threads"), [*((settings, 1) for settings in SETTINGS), (SETTINGS[1], 2)]
)
def test_everything_is_what_the_publisher_finds(settings, threads, sam_pair, photo, tmp_path):
    torch.set_num_threads(threads)
    built, network, theirs = lively(sam_pair, 1)
    settings = {"points_per_side": 6, "stability_score_offset": 0.5} | settings
    names = {THEIR_NAMES.get(name, name): value for name, value in settings.items()}
    expected = SamAutomaticMaskGenerator(theirs, **names, points_per_batch=36).generate(
        image.read(photo)
    )
    found = sigak.Session(write(tmp_path / "x.safetensors", network, built), photo).everything(
        **settings
    )
    assert torch.get_num_threads() == threads
    assert len(found) == len(expected) > 1
    for ours, theirs in zip(found.asdict()["objects"], expected, strict=True):
        mask = coco.decode(ours["segmentation"]).astype(bool)
        assert overlap(mask, theirs["segmentation"]) > 0.99
        assert ours["area"] == mask.sum()
        assert ours["predicted_iou"] == pytest.approx(theirs["predicted_iou"], abs=1e-4)
        stability = np.nan_to_num(theirs["stability_score"])  # of an empty mask 0 / 0
        assert ours["stability_score"] == pytest.approx(stability, abs=0.01)
        assert ours["point_coords"][0] == pytest.approx(theirs["point_coords"][0])
        assert ours["crop_box"] == theirs["crop_box"]
        np.testing.assert_allclose(ours["bbox"], theirs["bbox"], atol=1)


def test_crops_and_grids_are_the_published_ones():
    for size in ((200, 301), (1200, 1800), (7, 3)):
        boxes, layers = generate_crop_boxes(size, 2, 512 / 1500)
        ours = list(crops(size, 2, 512 / 1500))
        assert [list(box) for box, _ in ours] == boxes
        assert [layer for _, layer in ours] == layers
    for count in (1, 5, 32):
        np.testing.assert_allclose(grid(count), build_point_grid(count))


# ------------------------------------------------------------------ the command


def test_the_command_answers_and_saves(sigak_cli, checkpoint, photo):
    said = sigak_cli(
        "predict", checkpoint, photo, "--box", "-10,20,120,150", "--box", "100,40,220,180",
        "--save", "out", "--coco", "--cutouts", "--json",
    )  # fmt: skip
    assert said.code == 0, said.err
    [answer] = json.loads(said.out)
    assert answer == json.loads(Path("out/predictions.json").read_text())[0]
    rows = json.loads(Path("out/coco.json").read_text())
    assert [row["image_id"] for row in rows] == ["photo", "photo"]
    with Image.open("out/0001-photo.png") as drawn:
        assert drawn.size == (301, 200)
    for number, (one, row) in enumerate(zip(answer["objects"], rows, strict=True), 1):
        mask = coco.decode(one["segmentation"])
        assert one["area"] == mask.sum() > 0
        assert row["bbox"] == coco.toBbox(one["segmentation"]).tolist()
        with Image.open(f"out/cutouts/photo-{number:03d}.png") as cut:
            x, y, wide, high = (int(v) for v in row["bbox"])
            assert cut.size == (wide, high)
            pixels = np.asarray(cut)
        assert ((pixels[..., 3] > 0) == mask[y : y + high, x : x + wide]).all()
        assert (pixels[..., :3] == image.read(photo)[y : y + high, x : x + wide]).all()


def test_everything_on_the_command_line(sigak_cli, checkpoint, photo):
    said = sigak_cli(
        "predict", checkpoint, photo, "--everything", "--points-per-side", 4, "--half",
        "--pred-iou-thresh", 0, "--stability-score-thresh", 0, "--json",
    )  # fmt: skip
    assert said.code == 0, said.err
    [answer] = json.loads(said.out)
    assert answer["objects"]
    assert answer["objects"][0]["crop_box"] == [0, 0, 301, 200]


WRONG = {
    "say what is meant with --point": [],
    "the point 400,5 is not on the picture, which is 301 wide and 200 high": ["--point", "400,5"],
    "the box 302,0,310,5 is not on the picture": ["--box", "302,0,310,5"],
    "--point must be X,Y": ["--point", "1;2"],
    "for a point that is not on the object, received '1,2,3'": ["--point", "1,2,3"],
    "--box must be X1,Y1,X2,Y2 with X1 < X2": ["--box", "9,9,3,12"],
    "--box must be X1,Y1,X2,Y2 with X1 < X2 and Y1 < Y2, received '0,0,inf,9'": [
        "--box",
        "0,0,inf,9",
    ],
    "leave out --prepare": ["--point", "5,5", "--prepare", "mirror"],
    "at least one point must be on the object": ["--point", "5,5,0"],
    "ask for one object at a time": ["--point", "5,5", "--box", "1,1,9,9", "--box", "2,2,9,9"],
    "--everything asks for all there is": ["--everything", "--point", "5,5"],
    "--pred-iou-thresh must be between 0 and 1, received 2.0": ["--pred-iou-thresh", "2"],
    "--conf says nothing to a checkpoint of the task prompt": ["--point", "5,5", "--conf", "0.5"],
    "--apart makes an object of every point": ["--apart", "--point", "5,5,0"],
}


@pytest.mark.parametrize("sentence", WRONG)
def test_mistakes_are_told_in_a_sentence(sentence, sigak_cli, checkpoint, photo):
    said = sigak_cli("predict", checkpoint, photo, *WRONG[sentence])
    assert said.code == 2
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_prompts_are_refused_by_others(sigak_cli, digits_run, photo):
    said = sigak_cli("predict", digits_run.checkpoint, photo, "--points-per-side", 8)
    assert said.code == 2
    assert "--points-per-side says nothing to a checkpoint of the task classify" in said.err
    with pytest.raises(SigakError, match="a network that answers prompts, such as sam-b"):
        sigak.Session(digits_run.checkpoint, photo)


def test_a_name_without_weights_is_told_where_they_come_from(sigak_cli, photo):
    said = sigak_cli("predict", "sam-b", photo, "--point", "3,4")
    assert said.code == 2
    assert "sigak import WEIGHTS --as sam-b --out sam-b.safetensors" in said.err


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (300, 2)])
def test_tiny_pictures(size, checkpoint, tmp_path):
    image.save(tmp_path / "dot.png", np.full((*size, 3), 90, np.uint8))
    session = sigak.Session(checkpoint, tmp_path / "dot.png")
    [one] = session.ask(points=[(0.5, 0.5)]).segments
    assert one.region.mask(size).shape == size
    how = {"points_per_side": 2, "pred_iou_thresh": 0, "stability_score_thresh": 0}
    how["crop_layers"] = 1
    for record in session.everything(**how).asdict()["objects"]:
        assert sum(record["segmentation"]["size"]) == sum(size)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_hundred_megapixels(checkpoint, tmp_path):
    image.save(tmp_path / "large.jpg", np.full((10_000, 10_000, 3), 90, np.uint8))
    session = sigak.Session(checkpoint, tmp_path / "large.jpg")
    [one] = session.ask(points=[(9000, 9000)]).segments
    assert one.region.mask(session.size).shape == (10_000, 10_000)


def test_several_objects_and_earlier_masks(checkpoint, photo):
    session = sigak.Session(checkpoint, photo)
    asked = [Question(((30, 40, 1),)), Question(box=(5, 5, 90, 90))]
    assert len(session.ask_all(asked)) == 2
    assert session.ask_all(asked).masks.shape == (2, 200, 301)
    apart = sigak.predict(checkpoint, photo, point=[(30, 40), (90, 90)], apart=True)
    assert [len(one.question.points) for one in apart[0].segments] == [1, 1]
    known = session.ask(points=[(30, 40)]).segments[0].coarse
    assert len(session.ask(points=[(5, 5, 0)], mask=known)) == 1
    with pytest.raises(SigakError, match=r"coarse logits of an answer, 64x64, received \(8, 8\)"):
        session.ask(points=[(3, 3)], mask=np.zeros((8, 8)))
    with pytest.raises(SigakError, match="say what is meant"):
        session.ask()


# ------------------------------------------------------------------ learning


def lessons(count=4):
    """A batch of scenes with their masks."""
    samples = []
    for index in range(count):
        pixels, objects = scenes.render(7, index, (64, 64), most=3)
        planes = [coco.decode(coco.frPyObjects(o, 64, 64)) for o in objects.outlines]
        truth = Instances(
            torch.from_numpy(objects.boxes).float(),
            torch.from_numpy(objects.labels),
            masks=torch.from_numpy(np.stack(planes).astype(bool)),
        )
        samples.append(Sample(pixels, f"x#{index}", index, instances=truth, truth=truth))
    return Batch.of(samples).floating()


def test_it_learns_and_is_measured():
    task = tasks.create("prompt", scenes.CLASSES, Recipe())
    torch.manual_seed(0)
    network = models.entry("sam-b").build(**form(size=(64, 64)))
    batch = lessons()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(60):
        [(name, found)] = task.steps(network, batch)
        assert name == "main"
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        losses.append(found["loss"].item())
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    still = [name for name, p in network.named_parameters() if p.grad is None]
    assert still == []
    engine = sigak.prediction.TorchEngine(network)
    measure = task.metric()
    measure.update(task.predict(engine, batch), batch)
    figures = measure.compute()
    assert figures["objects"] == sum(len(one) for one in batch.truth)
    assert 0.2 < figures["box_iou"] <= 1
    assert 0 <= figures["point_iou"] <= 1


def test_boxes_alone_teach_nothing():
    task = tasks.create("prompt", scenes.CLASSES, Recipe())
    batch = lessons(1)
    batch.instances[0].masks = None
    with pytest.raises(SigakError, match="learnt from objects with masks"):
        list(task.steps(None, batch))

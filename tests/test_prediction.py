"""Prediction: one answer for a picture in whatever form it comes, and one with training."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import sigak
from sigak.data import Problem
from sigak.io import image, steps
from sigak.prediction import load
from sigak.structures import SigakError


@pytest.fixture(scope="module")
def rgb_run(tmp_path_factory):
    """A network that takes RGB, with random weights after one step."""
    root = tmp_path_factory.mktemp("rgb")
    random = np.random.default_rng(0)
    for class_name in ("cat", "dog"):
        for i in range(5):
            place = root / "pets" / class_name / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(place)
    return sigak.train(
        "mlp", root / "pets", epochs=1, size=12, fit="crop", out=str(root / "run"), quiet=True
    )


def scores(predictor, source, **options):
    return np.stack([result.scores for result in predictor.predict(source, **options)])


def test_every_form_of_a_gray_picture_gives_the_same_answer(digits_run, tmp_path):
    predictor = load(digits_run.checkpoint)
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8), np.uint8)
    pixels[0, 0] = 255  # so that floats are seen to be shares of 255
    path = tmp_path / "one.png"
    Image.fromarray(pixels).save(path)
    picture = Image.open(path)
    picture.load()
    forms = {
        "path": path,
        "text": str(path),
        "bytes": path.read_bytes(),
        "picture": picture,
        "HW": pixels,
        "HW1": pixels[:, :, None],
        "1HW": pixels[None],
        "NHW": pixels[None],
        "NHW1": pixels[None, :, :, None],
        "N1HW": pixels[None, None],
        "floats": pixels.astype(np.float32) / 255,
        "doubles": pixels / 255,
        "tensor": torch.from_numpy(pixels),
        "float tensor": torch.from_numpy(pixels[None]).float() / 255,
        "list": [pixels],
        "strided": np.asfortranarray(pixels),
    }
    expected = scores(predictor, path)
    for name, form in forms.items():
        assert np.array_equal(scores(predictor, form), expected), name


def test_every_form_of_a_colour_picture_gives_the_same_answer(rgb_run, tmp_path):
    predictor = load(rgb_run.checkpoint)
    pixels = np.random.default_rng(2).integers(0, 256, (20, 24, 3), np.uint8)
    pixels[0, 0] = 255
    path = tmp_path / "one.png"
    Image.fromarray(pixels).save(path)
    forms = [
        path.read_bytes(),
        Image.fromarray(pixels),
        pixels,
        pixels.transpose(2, 0, 1),
        pixels / 255,
        torch.from_numpy(pixels),
        torch.from_numpy(pixels).permute(2, 0, 1) / 255,
        pixels[None],
        pixels[:, :, ::-1][:, :, ::-1],
        np.dstack([pixels, np.full((20, 24), 255, np.uint8)]),  # opaque RGBA
    ]
    expected = scores(predictor, path)
    for place, form in enumerate(forms):
        assert np.array_equal(scores(predictor, form), expected), place


def test_a_list_and_a_batch_answer_in_order(digits_run):
    predictor = load(digits_run.checkpoint)
    pixels = np.random.default_rng(3).integers(0, 256, (7, 8, 8), np.uint8)
    together = scores(predictor, pixels)
    apart = np.concatenate([scores(predictor, one) for one in pixels])
    assert together == pytest.approx(apart, abs=1e-6)
    assert np.array_equal(scores(predictor, list(pixels)), together)
    assert scores(predictor, list(pixels), batch=3) == pytest.approx(together, abs=1e-6)
    assert together.sum(1) == pytest.approx(1, abs=1e-12)


def test_answers_stream_and_keep_their_sources(rgb_run, folder):
    predictor, pets = load(rgb_run.folder), folder(count=3)
    paths = sorted(pets.rglob("*.png"))
    stream = predictor.stream(pets, batch=2)
    first = next(stream)
    assert first.source == str(paths[0])
    assert [r.source for r in stream] == [str(p) for p in paths[1:]]
    answer = first.asdict()
    assert list(answer["scores"]) == ["cat", "dog"]
    assert answer["score"] == max(answer["scores"].values())
    assert answer["scores"][answer["label"]] == answer["score"]


def test_what_cannot_be_read_is_named_or_raises(rgb_run, folder):
    predictor, pets = load(rgb_run.folder), folder(count=2)
    broken = pets / "cat" / "broken.png"
    broken.write_bytes(b"no picture")
    problems: list[Problem] = []
    assert len(predictor.predict(pets, problems=problems)) == 4
    assert [p.source for p in problems] == [str(broken)]
    with pytest.raises(SigakError, match=r"broken\.png"):
        predictor.predict(pets)


CHAIN = "crop=2,3,22,19 mirror rotate=90 invert"


def test_steps_done_first_equal_a_picture_prepared_by_hand(rgb_run, tmp_path, sigak_cli):
    pixels = np.random.default_rng(4).integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    image.save(tmp_path / "ready.png", steps.run(pixels, CHAIN.split()))
    predictor = load(rgb_run.folder)
    chained = scores(predictor, tmp_path / "photo.png", prepare=CHAIN)
    assert np.array_equal(chained, scores(predictor, tmp_path / "ready.png"))
    assert not np.array_equal(chained, scores(predictor, tmp_path / "photo.png"))
    done = sigak_cli("predict", rgb_run.folder, "photo.png", "--prepare", CHAIN, "--json")
    assert list(json.loads(done.out)[0]["scores"].values()) == chained[0].tolist()


@pytest.mark.parametrize("fit", ["squash", "letterbox", "crop"])
@pytest.mark.parametrize("color", ["gray", "rgb", "rgba"])
def test_validation_evaluation_and_prediction_agree(fit, color, folder, tmp_path):
    pets = folder("set/train", count=12, size=(15, 21), suffix=".jpg")
    folder("set/val", count=7, size=(33, 40), suffix=".jpg")
    run = sigak.train(
        "mlp", tmp_path / "set", epochs=1, size=8, fit=fit, color=color, batch=5, lr=0.01,
        out=str(tmp_path / "run"), quiet=True,
    )  # fmt: skip
    found = sigak.evaluate(run.checkpoint, tmp_path / "set", batch=4)
    assert found["split"] == "val"
    assert found["count"] == 14
    assert found["accuracy"] == run.history["val_accuracy"][-1] == run.evaluation["accuracy"]
    assert found["loss"] == pytest.approx(run.history["val_loss"][-1], abs=1e-6)
    results = sigak.predict(run.checkpoint, pets.parent / "val")
    truth = [r.source.replace("\\", "/").split("/")[-2] for r in results]
    right = [r.label == t for r, t in zip(results, truth)]
    assert sum(right) / len(right) == found["accuracy"]
    likely = [r.scores[r.classes.index(t)] for r, t in zip(results, truth)]
    assert -np.log(likely).mean() == pytest.approx(found["loss"], abs=1e-6)


@pytest.mark.parametrize("mode", ["int", "categorical", "binary"])
def test_label_modes_train_and_predict(mode, folder, tmp_path):
    pets = folder(count=15, size=(8, 8))
    run = sigak.train(
        "mlp", pets, epochs=8, size=8, lr=0.01, batch=8, label_mode=mode, augment="mixup=0.1",
        label_smoothing=0.01, out=str(tmp_path / "run"), quiet=True,
    )  # fmt: skip
    predictor = load(run.checkpoint)
    results = predictor.predict(pets)
    assert {r.classes for r in results} == {("cat", "dog")}
    assert np.stack([r.scores for r in results]).sum(1) == pytest.approx(1, abs=1e-12)
    right = [r.label == r.source.replace("\\", "/").split("/")[-2] for r in results]
    assert np.mean(right) > 0.9
    outputs = predictor.network(torch.zeros(1, 3, 8, 8)).shape[1]
    assert outputs == (1 if mode == "binary" else 2)


def test_int_and_categorical_labels_learn_the_same(folder, tmp_path):
    pets = folder(size=(8, 8))
    ends = {
        mode: sigak.train(
            "mlp", pets, epochs=2, size=8, label_mode=mode, out=str(tmp_path / mode), quiet=True
        ).history["loss"]
        for mode in ("int", "categorical")
    }
    assert ends["int"] == pytest.approx(ends["categorical"], abs=1e-6)


def test_json_is_one_document_and_text_names_the_likeliest(rgb_run, folder, sigak_cli):
    folder(count=2)
    done = sigak_cli("predict", rgb_run.folder, "pets", "--json")
    answers = json.loads(done.out)
    assert len(answers) == 4
    assert done.err == ""
    shown = sigak_cli("predict", rgb_run.folder, "pets").out.splitlines()
    assert len(shown) == 4
    for line, answer in zip(shown, answers):
        assert line.startswith(f"{answer['source']}: {answer['label']} {answer['score']:.1%}")


def test_saved_answers_and_drawings(rgb_run, folder, sigak_cli, tmp_path):
    folder(count=1)
    assert sigak_cli("predict", rgb_run.folder, "pets", "--save", "answers").code == 0
    saved = json.loads((tmp_path / "answers" / "predictions.json").read_text(encoding="utf-8"))
    assert [row["source"] for row in saved] == ["pets/cat/0.png", "pets/dog/0.png"]
    lines = (tmp_path / "answers" / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "source,label,score,cat,dog"
    assert len(lines) == 3
    drawn = sorted((tmp_path / "answers").glob("*.png"))
    assert [p.name for p in drawn] == ["0001-0.png", "0002-0.png"]
    assert image.read(drawn[0]).shape[2] == 3


def test_a_jpeg_predicts_the_same_as_its_bytes_and_pixels(rgb_run):
    pixels = np.random.default_rng(5).integers(0, 256, (64, 80, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    predictor = load(rgb_run.folder)
    decoded = np.asarray(Image.open(io.BytesIO(file.getvalue())))
    assert np.array_equal(scores(predictor, file.getvalue()), scores(predictor, decoded))


def test_a_predictor_is_taken_as_it_is(digits_run):
    predictor = load(digits_run.folder, device="cpu")
    assert load(predictor) is predictor
    assert predictor.classes == [str(i) for i in range(10)]

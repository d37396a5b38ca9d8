"""Export: a file for another engine answers as its checkpoint does, or there is no file."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

import sigak
from sigak import models
from sigak.data import scenes
from sigak.exportation import export
from sigak.io import weights
from sigak.io.image import Preparation
from sigak.models import lenet
from sigak.models._entry import Entry, Input
from sigak.prediction import load
from sigak.recipe import Recipe
from sigak.runtime import FusedEngine, TorchEngine, choice, files, onnx_engine
from sigak.structures import Failure, SigakError

for package in ("onnx", "onnxruntime", "openvino"):
    pytest.importorskip(package)

FORMATS = tuple(files.FORMATS)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SIGAK_CACHE", str(tmp_path / "cache"))


def checkpoint(path, name, classes=3, **changes):
    """A file of a small form of `name` with random weights, and statistics of random pictures, so
    that its answers differ from picture to picture.
    """
    row = models.entry(name)
    built = models.arguments(name, classes=classes, **row.tiny | changes)
    torch.manual_seed(0)
    network = row.build(**built)
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    network.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 0.5
    with torch.no_grad():
        network(torch.rand(4, *models.input_shape(network, built)))
    color = {1: "gray", 3: "rgb", 4: "rgba"}[built["channels"]]
    preparation = Preparation(tuple(built["size"]), color, row.input.fit)
    header = weights.header(
        name,
        row.task,
        built,
        [f"class {i}" for i in range(classes)],
        preparation=preparation.asdict(),
        recipe=Recipe.of(row.recipe).asdict(),
        data={},
    )
    weights.write(path, network.state_dict(), header)
    return path


@pytest.mark.parametrize("to", FORMATS)
def test_a_file_takes_the_place_of_its_checkpoint(to, digits_run, tmp_path, sigak_cli):
    out = tmp_path / f"net{files.FORMATS[to].suffix}"
    done = sigak_cli("export", digits_run.folder, "--to", to, "--out", out, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["difference"] < 1e-5
    assert told["answers"] == [12, 12]
    assert told["compared"] == 20
    here, there = load(digits_run.checkpoint), load(out)
    assert there.classes == here.classes
    assert there.header | {"export": 0} == here.header | {"export": 0}
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8), np.uint8)
    for ours, theirs in zip(here.predict(pictures), there.predict(pictures), strict=True):
        assert theirs.label == ours.label
        assert np.allclose(theirs.scores, ours.scores, atol=1e-5)
    accuracy = sigak.evaluate(digits_run.checkpoint, "digits")["accuracy"]
    assert sigak.evaluate(out, "digits")["accuracy"] == accuracy
    with pytest.raises(SigakError, match="give the checkpoint it was exported from"):
        sigak.explain(out, pictures[0])
    with pytest.raises(SigakError, match="needs a checkpoint"):
        export(out, to)


@pytest.mark.parametrize("to", FORMATS)
def test_a_detector_reads_the_files_output_with_its_own_anchors(to, tmp_path):
    path = checkpoint(tmp_path / "x.safetensors", "yolov5n")
    tensors, header = weights.read(path)
    tensors["detect.anchors"] *= 1.7
    weights.write(path, tensors, header)
    out = export(path, to, size=96).file
    here, there = load(path), load(out)
    assert there.preparation.size == (96, 96)
    assert torch.equal(there.network.detect.anchors, tensors["detect.anchors"])
    images = torch.rand(3, 3, 64, 128)
    found = [p.engine.network.decode(p.engine(images), (64, 128), 0.0) for p in (here, there)]
    for ours, theirs in zip(*found, strict=True):
        assert len(ours) == len(theirs) > 0
        torch.testing.assert_close(theirs.boxes, ours.boxes, rtol=1e-3, atol=0.1)
    [result] = there.predict(scenes.render(0, 0, (60, 90))[0], conf=0.3)
    assert result.size == (60, 90)


@pytest.mark.parametrize("size", [1, 3, (4, 6), (None, 7)])
def test_pooling_to_any_size_is_written(size, tmp_path):
    pool = nn.AdaptiveAvgPool2d(size)
    images = torch.rand(2, 3, 5, 9)
    path = tmp_path / "pool.onnx"
    path.write_bytes(onnx_engine.convert(pool, (3, 5, 9)))
    torch.testing.assert_close(onnx_engine.OnnxEngine(path)(images), pool(images))


def test_a_generator_makes_the_same_pictures(tmp_path):
    path = checkpoint(tmp_path / "x.safetensors", "dcgan", classes=1)
    done = export(path, "onnx")
    assert done.answers is None
    ours, theirs = (load(p).generate(3, seed=5) for p in (path, done.file))
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a.image.astype(int) - b.image).max() <= 1


@pytest.mark.parametrize("to", FORMATS)
def test_half_the_bytes(to, tmp_path):
    path = checkpoint(tmp_path / "x.safetensors", "mlp")
    whole = export(path, to, out=tmp_path / f"whole{files.FORMATS[to].suffix}")
    half = export(path, to, out=tmp_path / f"half{files.FORMATS[to].suffix}", precision="float16")
    sizes = [one.files[0].stat().st_size for one in (whole, half)]  # that of the weights
    assert sizes[1] < 0.7 * sizes[0]
    assert 1e-6 < half.difference < 0.03
    picture = scenes.render(0, 0, (32, 32))[0]
    assert load(half.file).predict(picture)[0].label == load(path).predict(picture)[0].label


class Crowded(nn.Module):
    """Answers otherwise in a crowd, which a traced graph cannot know."""

    head = ("classifier",)

    def __init__(self, *, classes, channels, size, mean, std):
        super().__init__()
        self.classifier = nn.Linear(channels * size[0] * size[1], classes)

    def forward(self, images):
        found = self.classifier(images.flatten(1))
        return found if len(images) < 5 else found * 2


def test_a_file_that_answers_otherwise_is_not_kept(tmp_path, monkeypatch, sigak_cli):
    row = Entry(Crowded, "classify", Input((8, 8)), (195, 195), classes=3)
    monkeypatch.setitem(lenet.MODELS, "crowded", row)
    path = checkpoint(tmp_path / "x.safetensors", "crowded")
    with pytest.raises(Failure, match=r"scenes#\d+ differs by 0\.5 of the largest number"):
        export(path, "onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    assert sigak_cli("export", path, "--to", "onnx").code == 1


def test_pictures_of_ones_own_are_compared(folder, tmp_path):
    path = checkpoint(tmp_path / "x.safetensors", "lenet5", classes=2)
    done = export(path, "onnx", data=str(folder(count=3)))
    assert done.answers == (2, 2)  # one of each class is held out


def test_mistakes_are_told(digits_run, tmp_path, sigak_cli):
    best = digits_run.checkpoint
    mistakes = {
        "--to must be one of onnx, openvino": {"to": "onx"},
        "--precision must be": {"to": "onnx", "precision": "int8"},
        "must be a file that ends in .xml": {"to": "openvino", "out": tmp_path / "x.onnx"},
        "expects no --size": {"to": "onnx", "size": 64},
    }
    for sentence, said in mistakes.items():
        with pytest.raises(SigakError, match=sentence):
            export(best, **said)
    out = export(best, "onnx", out=tmp_path / "x.onnx").file
    for said in ({"engine": "openvino"}, {"device": "meta"}):
        with pytest.raises(SigakError, match="runs on onnx and the CPU"):
            load(out, **said)
    with pytest.raises(SigakError, match="--engine must be auto or one of torch"):
        load(best, engine="tensor")
    bare = onnx_engine.convert(nn.Flatten(), (1, 4, 4))
    (tmp_path / "bare.onnx").write_bytes(bare)
    with pytest.raises(SigakError, match="not how to use it"):
        load(tmp_path / "bare.onnx")
    (tmp_path / "cut.onnx").write_bytes(out.read_bytes()[:-999])
    with pytest.raises(SigakError, match="not a whole ONNX file"):
        load(tmp_path / "cut.onnx")
    (tmp_path / "alone.xml").write_text("<net/>")
    with pytest.raises(SigakError, match="not a whole OpenVINO file"):
        load(tmp_path / "alone.xml")


# ------------------------------------------------------------------ engines of a checkpoint


@pytest.mark.parametrize("name", choice.ENGINES)
def test_every_engine_answers_alike(name, digits_run, sigak_cli):
    pictures = sigak.load_data("digits").splits["test"].pixels[:20]
    ours = load(digits_run.checkpoint).predict(pictures)
    theirs = load(digits_run.checkpoint, engine=name).predict(pictures)
    room = 0.05 if "bf16" in name else 1e-5
    assert max(np.abs(a.scores - b.scores).max() for a, b in zip(ours, theirs)) < room


def test_a_fused_copy_leaves_the_network_alone(tmp_path):
    predictor = load(checkpoint(tmp_path / "x.safetensors", "localizer"))
    images = torch.rand(3, 3, 64, 64)
    expected = predictor.engine(images)
    fused = FusedEngine(predictor.network)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused._fused.modules())
    for ours, theirs in zip(expected, fused(images), strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    low = FusedEngine(predictor.network, dtype=torch.bfloat16)(images)
    assert [part.dtype for part in low] == [torch.float32] * 2
    for ours, again in zip(expected, TorchEngine(predictor.network)(images), strict=True):
        assert torch.equal(again, ours)


class Wrong:
    """Quick, and always of one opinion."""

    def __init__(self, one):
        self.network, self.device = one.network, one.device

    def __call__(self, images):
        return torch.eye(10)[:1].expand(len(images), 10) * 50


class Slow(TorchEngine):
    def __call__(self, images):
        time.sleep(0.02)
        return super().__call__(images)


def notes(tmp_path):
    return list((tmp_path / "cache").rglob("choice-*.json"))


def test_auto_takes_the_fastest_that_agrees_and_remembers(digits_run, tmp_path, monkeypatch):
    engines = {
        "torch": lambda one: Slow(one.network),
        "onnx": choice.ENGINES["onnx"],
        "torch-fused": Wrong,
    }
    monkeypatch.setattr(choice, "ENGINES", engines)
    predictor = load(digits_run.checkpoint, engine="auto")
    assert isinstance(predictor.engine, onnx_engine.OnnxEngine)
    [note] = notes(tmp_path)
    said = json.loads(note.read_text())
    assert said["engine"] == "onnx"
    assert said["refused"] == {"torch-fused": "its answers differ"}
    assert said["milliseconds"]["torch"] > 20
    # It is believed the next time.
    note.write_text(json.dumps(said | {"engine": "torch"}))
    assert isinstance(load(digits_run.checkpoint, engine="auto").engine, Slow)
    # A damaged one is not, nor one of another machine, nor a damaged file.
    for text in ("{", json.dumps(said | {"engine": "torch", "machine": {}}), "[]"):
        note.write_text(text)
        [kept] = note.parent.glob("*.onnx")
        kept.write_bytes(b"cut")
        engine = load(digits_run.checkpoint, engine="auto").engine
        assert isinstance(engine, onnx_engine.OnnxEngine)
        assert json.loads(note.read_text())["engine"] == "onnx"
    assert {p.name for p in note.parent.iterdir()} == {"network.onnx", note.name}


def test_predict_and_evaluate_take_an_engine(digits_run, tmp_path, sigak_cli):
    done = sigak_cli("evaluate", digits_run.folder, "digits", "--engine", "onnx", "--json")
    assert done.code == 0, done.err
    expected = sigak.evaluate(digits_run.checkpoint, "digits")["accuracy"]
    assert json.loads(done.out)["accuracy"] == expected


SILENT = """
import socket, sys
tried = []
def refuse(*words, **more):
    tried.append(words)
    raise OSError("no network here")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from sigak.exportation import export
from sigak.prediction import load
import numpy as np
for to in ("onnx", "openvino"):
    file = export(sys.argv[1], to, out=sys.argv[2] + {"onnx": ".onnx", "openvino": ".xml"}[to]).file
    load(file).predict(np.zeros((8, 8), np.uint8))
import time
time.sleep(0.5)
print(tried, [name for name in sys.modules if name.startswith("openvino_telemetry")])
"""


def test_nothing_is_sent_anywhere(digits_run, tmp_path, run_environment):
    run_environment = run_environment | {"XDG_CACHE_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", SILENT, str(digits_run.checkpoint), str(tmp_path / "net")],
        env=run_environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] []"
    # What ONNX Runtime would send lies in a folder of its own.
    assert not [p for p in (tmp_path / "home").rglob("*") if "Microsoft" in p.parts]


# ------------------------------------------------------------------ the zoo

ZOO = [name for name in models.names() if models.entry(name).tiny or name in ("mlp", "lenet5")]
QUICK = ("lenet5", "lstm-rows", "vgg1", "vit-tiny-16", "yolov2-tiny", "localizer", "dcgan")


def zoo(*quick):
    marks = [pytest.mark.slow]
    return [n if n in quick else pytest.param(n, marks=marks) for n in ZOO]


@pytest.mark.parametrize("name", zoo(*QUICK))
def test_the_zoo_is_exported(name, tmp_path, request):
    if reason := models.entry(name).skip.get("export"):
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    done = export(checkpoint(tmp_path / "x.safetensors", name), "onnx")
    assert done.difference < 1e-4


@pytest.mark.parametrize("name", ["lenet5", "yolov2-tiny"])
def test_some_of_the_zoo_go_to_openvino(name, tmp_path):
    assert export(checkpoint(tmp_path / "x.safetensors", name), "openvino").difference < 1e-4

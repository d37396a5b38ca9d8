"""Weights made elsewhere: fitted by name and shape, refused readably, fetched only when asked."""

import hashlib
import json
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

import sigak
from sigak import foreign, models
from sigak.io import weights as files
from sigak.models import torchvision_nets
from sigak.prediction import load
from sigak.structures import SigakError


@pytest.fixture
def small(tmp_path):
    """A small network with its own weights, and their plain state dict."""
    torch.manual_seed(7)
    network = models.create("mlp", classes=3, size=(8, 8))
    return network, dict(network.state_dict())


def adopted(path, tmp_path, name="mlp", **changes):
    options = {"classes": ["a", "b", "c"], "size": (8, 8), "out": tmp_path / "x.safetensors"}
    return load(foreign.adopt(path, name, **options | changes))


WRAPPINGS = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"lr": 0.1}},
    "module.": lambda s: {f"module.{k}": v for k, v in s.items()},
    "state_dict and module.": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_torch_files_in_the_usual_wrappings(wrapping, suffix, small, tmp_path):
    network, state = small
    torch.save(WRAPPINGS[wrapping](state), tmp_path / f"x{suffix}")
    predictor = adopted(tmp_path / f"x{suffix}", tmp_path)
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(predictor.network(images), network(images))
    assert predictor.classes == ["a", "b", "c"]


def test_safetensors(small, tmp_path):
    network, state = small
    save_file(state, tmp_path / "plain.safetensors")
    predictor = adopted(tmp_path / "plain.safetensors", tmp_path)
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(predictor.network(images), network(images))


def test_import_on_the_command_line(small, tmp_path, sigak_cli):
    torch.save(small[1], tmp_path / "x.pt")
    (tmp_path / "names.txt").write_text("ant\nbee\n\ncow\n", encoding="utf-8")
    words = ("import", "x.pt", "--as", "mlp", "--size", 8, "--out", "deep/x.safetensors")
    assert sigak_cli(*words, "--classes", "names.txt").code == 0
    assert load(tmp_path / "deep" / "x.safetensors").classes == ["ant", "bee", "cow"]
    many = ",".join(f"class number {i}" for i in range(100))  # longer than a file's name may be
    done = sigak_cli(*words, "--classes", many)
    assert done.code == 2
    assert "classifier.weight (3, 128) instead of (100, 128)" in done.err


def test_what_does_not_fit_is_listed(small, tmp_path):
    state = dict(small[1])
    state["hidden.1.weight"] = torch.zeros(128, 9)
    state["stray"] = torch.zeros(1)
    del state["classifier.bias"]
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(SigakError) as caught:
        adopted(tmp_path / "x.pt", tmp_path)
    text = str(caught.value)
    assert "1 missing (classifier.bias)" in text
    assert "1 unexpected (stray)" in text
    assert "1 of another shape (hidden.1.weight (128, 9) instead of (128, 64))" in text
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("value", [[1, 2], {}, {"a": 1}, torch.zeros(2)])
def test_a_file_without_named_tensors(value, tmp_path):
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(SigakError, match="named tensors"):
        files.read_foreign(tmp_path / "x.pt")


# ------------------------------------------------------------------ published weights


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5"])
def test_torchvision_weights_give_torchvision_answers(name, tmp_path):
    torch.manual_seed(3)
    theirs = torchvision.models.get_model(name, weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    predictor = adopted(tmp_path / "x.pth", tmp_path, name, classes=None, size=(64, 64))
    images = torch.rand(2, 3, 64, 64)
    by_hand = (images - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(predictor.engine(images), theirs(by_hand), atol=1e-5, rtol=1e-4)
    assert len(predictor.classes) == 1000


def test_timm_weights_give_timm_answers(tmp_path):
    torch.manual_seed(4)
    theirs = timm.create_model("test_resnet").eval()
    save_file(theirs.state_dict(), tmp_path / "t.safetensors")
    predictor = adopted(
        tmp_path / "t.safetensors", tmp_path, "test_resnet", classes=None, size=None
    )
    config = timm.get_pretrained_cfg("test_resnet")
    images = torch.rand(2, *config.input_size)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
    with torch.no_grad():
        by_hand = theirs((images - mean) / std)
        torch.testing.assert_close(predictor.engine(images), by_hand, atol=1e-5, rtol=1e-4)


def test_another_number_of_classes_keeps_the_backbone(folder, tmp_path):
    torch.manual_seed(5)
    theirs = torchvision.models.get_model("squeezenet1_1", weights=None)
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    run = sigak.train(
        "squeezenet1_1", folder(count=4), pretrained=str(tmp_path / "x.pth"), freeze="backbone",
        epochs=1, size=32, quiet=True, out=str(tmp_path / "run"),
    )  # fmt: skip
    ours = load(run.checkpoint).network.net.state_dict()
    for name, value in theirs.state_dict().items():
        if name.startswith("classifier.1"):
            assert len(ours[name]) == 2
        else:
            assert torch.equal(ours[name], value), name


def test_a_checkpoint_of_ours_is_a_start_too(folder, digits_run, tmp_path):
    run = sigak.train(
        "mlp", folder(), pretrained=str(digits_run.checkpoint), epochs=1, size=8, color="gray",
        quiet=True, lr=1e-9, out=str(tmp_path / "run"),
    )  # fmt: skip
    before, after = (load(path).network.hidden for path in (digits_run.checkpoint, run.checkpoint))
    torch.testing.assert_close(before[1].weight, after[1].weight)


# ------------------------------------------------------------------ fetching


def test_nothing_is_fetched_unless_asked(folder, sigak_cli):
    folder()
    done = sigak_cli("train", "squeezenet1_1", "pets", "--size", 32, "--pretrained")
    assert done.code == 2
    assert "squeezenet1_1:tv_in1k are not on this machine (looked for " in done.err
    assert "squeezenet1_1.tv_in1k.pth" in done.err
    assert "add --download to fetch them from https://download.pytorch.org/" in done.err
    done = sigak_cli("train", "squeezenet1_1", "pets", "--size", 32, "--pretrained", "tv_in2k")
    assert "no weights called 'tv_in2k'" in done.err
    assert "it has tv_in1k" in done.err


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def published(tmp_path, monkeypatch):
    """squeezenet1_1's weights on a server of this machine; (file, row as it is published)."""
    shop = tmp_path / "shop"
    shop.mkdir()
    torch.manual_seed(6)
    theirs = torchvision.models.get_model("squeezenet1_1", weights=None)
    torch.save(theirs.state_dict(), shop / "x.pth")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shop)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    row = torchvision_nets.MODELS["squeezenet1_1"]
    url = f"http://127.0.0.1:{server.server_port}/x.pth"
    sum_ = hashlib.sha256((shop / "x.pth").read_bytes()).hexdigest()[:8]
    fitted = replace(row, weights=(replace(row.weights[0], url=url, sha256=sum_),))
    monkeypatch.setitem(torchvision_nets.MODELS, "squeezenet1_1", fitted)
    monkeypatch.setenv("SIGAK_CACHE", str(tmp_path / "cache"))
    yield shop / "x.pth", fitted
    server.shutdown()
    server.server_close()


def test_published_weights_are_fetched_checked_and_kept(published, tmp_path):
    file, row = published
    path, chosen = foreign.fetch("squeezenet1_1", allow_download=True)
    assert path == tmp_path / "cache" / "weights" / "squeezenet1_1.tv_in1k.pth"
    assert path.read_bytes() == file.read_bytes()
    assert chosen.tag == "tv_in1k"
    file.unlink()  # from here on they come from the cache
    assert foreign.fetch("squeezenet1_1", "tv_in1k") == (path, chosen)
    network = row.build(**models.arguments("squeezenet1_1", classes=5))
    assert foreign.load_into(network, row, path, head=network.head) == [
        "net.classifier.1.weight",
        "net.classifier.1.bias",
    ]


def test_weights_with_another_checksum_are_refused(published):
    file, _ = published
    file.write_bytes(file.read_bytes() + b"changed")
    with pytest.raises(SigakError, match="sha256"):
        foreign.fetch("squeezenet1_1", allow_download=True)


def test_models_as_json(sigak_cli):
    (row,) = json.loads(sigak_cli("models", "squeezenet1_1", "--json").out)
    assert row["parameters"] == {"total": 1_235_496, "trainable": 1_235_496}
    assert row["weights"][0]["url"].startswith("https://")

"""Bad input: a sentence on standard error, the right exit code, no traceback, nothing destroyed."""

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from sigak.data import Dataset, Record, Split
from sigak.structures import SigakError

TRAIN = ("--epochs", 1, "--size", 8, "--quiet", "--out", "run")


def refused(done, *words, code=2):
    """One sentence of sigak with every one of `words` in it, and the exit code."""
    assert done.code == code, done.err
    assert done.out == ""
    assert done.err.startswith("sigak: ")
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err


# ------------------------------------------------------------------ flags

WRONG_FLAGS = [
    (("--batch", 0), "--batch must be at least 1, received 0"),
    (("--lr", -1), "--lr must be at least 0"),
    (("--lr", "nan"), "--lr must be at least 0, received nan"),
    (("--val", 1.5), "--val must be between 0 and 0.9"),
    (("--size", -3), "--size must be at least 0"),
    (("--epochs", 0), "--epochs must be at least 1"),
    (("--momentum", 2), "--momentum must be between 0 and 1"),
    (("--threads", -1), "--threads must be at least 0"),
    (("--early-stop", -1), "--early-stop must be at least 0"),
    (("--reduce-lr", 1, "--reduce-factor", 2), "between 0 and 1, received 2.0"),
    (("--optimizer", "adm"), "did you mean adam"),
    (("--optimizer", "lbfgs"), "no optimiser called 'lbfgs'"),
    (("--schedule", "cosin"), "did you mean cosine"),
    (("--augment", "flp=h"), "did you mean flip"),
    (("--augment", "rotate=fast"), "rotate"),
    (("--label-mode", "binry"), "did you mean binary"),
    (("--color", "rbg"), "did you mean rgb"),
    (("--fit", "squish"), "did you mean squash"),
    (("--precision", "float16"), "float32"),
    (("--device", "nonsense"), "try auto or cpu"),
    (("--device", "meta"), "try auto or cpu"),
    (("--monitor", "val_acuracy"), "'val_acuracy'"),
    (("--monitor", "val_top5_loss"), "measured are loss, accuracy"),
    (("--freeze", "backbone"), "add --pretrained"),
    (("--pretrained",), "mlp has no published weights"),
    (("--pretrained", "nothing.pt"), "there is no file nothing.pt"),
    (("--epoch", 3), "did you mean --epochs?"),
    (("--epochs", "x"), "invalid int value: 'x'"),
]


@pytest.mark.parametrize(
    ("flags", "sentence"), WRONG_FLAGS, ids=[" ".join(map(str, f)) for f, _ in WRONG_FLAGS]
)
def test_a_wrong_flag_of_train(flags, sentence, folder, sigak_cli):
    folder()
    refused(sigak_cli("train", "mlp", "pets", *TRAIN, *flags), sentence)


def test_a_wrong_word(folder, sigak_cli, digits_run):
    pets, run = folder(), digits_run.folder
    refused(sigak_cli("trian"), "did you mean train?")
    refused(sigak_cli("--versoin"), "did you mean --version?")
    refused(sigak_cli("models", "--summry"), "did you mean --summary?")
    refused(sigak_cli("train", "lenet", pets), "did you mean lenet5")
    refused(sigak_cli("models", "resnet81", "--summary"), "did you mean resnet18")
    refused(sigak_cli("models", "resnet81"), "resnet18")
    refused(sigak_cli("import", "x.pt", "--as", "mpl", "--out", "x"), "did you mean mlp")
    refused(sigak_cli("predict", run, pets, "--prepare", "miror"), "did you mean mirror?")
    refused(sigak_cli("image", pets, "miror", "--out", "x.png"), "did you mean mirror?")
    refused(sigak_cli("image"), "expected a picture")
    refused(sigak_cli("augment", pets, "--out", "x.png", "--rows", 0), "--rows must be at least 1")
    refused(sigak_cli("augment", pets, "--out", "x.xyz", "--size", 8), "cannot save x.xyz")
    refused(sigak_cli("predict"), "required: checkpoint")
    refused(sigak_cli("predict", run), "expected pictures, videos or folders")
    refused(sigak_cli("predict", run, pets, "--batch", 0), "--batch must be at least 1")
    refused(sigak_cli("evaluate", run, "digits", "--batch", 0), "--batch must be at least 1")
    refused(sigak_cli("evaluate", run, "digits", "--split", "tset"), "it has train, val, test")


@pytest.mark.parametrize(
    ("model", "size", "sentence"),
    [
        ("lenet5", 6, "at least 12x12, received 6x6"),
        ("vgg3", 7, "at least 8x8, received 7x7"),
        ("squeezenet1_1", 8, "cannot take pictures of 8x8"),
    ],
)
def test_a_size_too_small_for_the_network(model, size, sentence, folder, sigak_cli, tmp_path):
    folder()
    refused(sigak_cli("train", model, "pets", *TRAIN, "--size", size), sentence)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------ data


def test_data_that_is_not_there(folder, sigak_cli):
    folder()
    refused(sigak_cli("train", "mlp", "nofolder/", *TRAIN), "nofolder does not exist")
    refused(sigak_cli("train", "mlp", "digit", *TRAIN), "did you mean digits")
    refused(
        sigak_cli("train", "mlp", "mnist", *TRAIN), "mnist is not on this machine", "--download"
    )
    refused(sigak_cli("data", "pets/cat"), "received no folders and 10 pictures")
    refused(sigak_cli("data", "pets/cat/0.png"), "is a file")


def test_an_empty_class_and_a_single_class(folder, sigak_cli):
    (folder() / "emu").mkdir()
    refused(sigak_cli("train", "mlp", "pets", *TRAIN), "received none that can be read for emu")
    folder("one", ("cat",))
    refused(sigak_cli("train", "mlp", "one", *TRAIN), "at least two; received cat")


def test_splits_of_different_classes(folder, sigak_cli):
    folder("set/train", ("cat", "dog"))
    folder("set/test", ("cat", "emu"))
    refused(sigak_cli("train", "mlp", "set", *TRAIN), "only in train: dog", "only in test: emu")


def test_damaged_pictures_are_skipped_and_named_or_refused(folder, sigak_cli):
    pets = folder()
    whole = (pets / "cat" / "0.png").read_bytes()
    (pets / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (pets / "cat" / "text.jpg").write_text("not a picture at all")
    (pets / "dog" / "empty.png").write_bytes(b"")
    refused(sigak_cli("train", "mlp", "pets", *TRAIN, "--strict"), "damaged files (3)", "cut.png")
    seen = json.loads(sigak_cli("data", "pets", "--json").out)
    assert {Path(p["source"]).name for p in seen["problems"]} == {
        "cut.png",
        "text.jpg",
        "empty.png",
    }
    done = sigak_cli("train", "mlp", "pets", *TRAIN)
    assert done.code == 0
    report = Path("run/report.html").read_text(encoding="utf-8")
    assert all(name in report for name in ("cut.png", "text.jpg", "empty.png"))


def test_labels_beyond_the_classes():
    records = [Record(f"x#{i}", i) for i in range(4)]
    with pytest.raises(SigakError, match="labels from 0 to 1, received 2 for x#2 in the train"):
        Dataset("x", ["a", "b"], {"train": Split("train", records)})


def test_binary_labels_with_ten_classes(sigak_cli):
    done = sigak_cli("train", "mlp", "digits", *TRAIN, "--label-mode", "binary")
    refused(done, "needs exactly 2 classes, the data has 10")


def test_classes_the_checkpoint_does_not_know(folder, digits_run, sigak_cli):
    pets = folder()
    refused(sigak_cli("evaluate", digits_run.folder, pets), "does not know: cat, dog")


def test_pictures_to_predict(folder, digits_run, sigak_cli, tmp_path):
    run, pets = digits_run.folder, folder(count=2)
    refused(sigak_cli("predict", run, "nowhere/*.png"), "no picture found")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.png").write_bytes(b"nothing")
    alone = sigak_cli("predict", run, bad)
    assert alone.code == 2
    assert alone.err.splitlines()[0].startswith("sigak: skipped")
    assert "none of the pictures could be read" in alone.err.splitlines()[1]
    (pets / "cat" / "broken.png").write_bytes(b"nothing")
    mixed = sigak_cli("predict", run, pets, "--json")
    assert mixed.code == 0
    assert len(json.loads(mixed.out)) == 4
    assert "broken.png" in mixed.err


# ------------------------------------------------------------------ checkpoints


def test_checkpoints_that_are_none(folder, digits_run, sigak_cli, tmp_path):
    pets, whole = folder(), digits_run.checkpoint.read_bytes()
    refused(sigak_cli("predict", "norun", pets), "norun does not exist")
    bad = tmp_path / "bad.safetensors"
    for length in (0, 3, 9, 100, len(whole) // 2, len(whole) - 1):
        bad.write_bytes(whole[:length])
        refused(sigak_cli("predict", bad, pets), "not a whole safetensors file")
    refused(sigak_cli("predict", pets / "cat" / "0.png", pets), "not a whole safetensors file")
    save_file({"w": torch.zeros(2)}, bad)
    refused(sigak_cli("predict", bad, pets), "sigak import bad.safetensors --as MODEL")
    resume = digits_run.folder / "resume.safetensors"
    refused(sigak_cli("predict", resume, pets), "give the run's folder")


def test_a_checkpoint_of_another_version_or_task(folder, digits_run, sigak_cli, tmp_path):
    pets, bad = folder(), tmp_path / "bad.safetensors"
    with safe_open(digits_run.checkpoint, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["sigak"])

    def write(tensors=tensors, text=None, **changes):
        save_file(tensors, bad, {"sigak": text or json.dumps(header | changes)})

    renamed = {name.replace("classifier", "head"): value for name, value in tensors.items()}
    write(renamed)
    refused(sigak_cli("predict", bad, pets), "4 tensors differ", "another version")
    write({name: value[..., :1].clone() for name, value in tensors.items()})
    refused(sigak_cli("predict", bad, pets), "tensors differ", "another version")
    write(task="fly")
    refused(sigak_cli("predict", bad, pets), "no task called 'fly'")
    write(name="mlp9")
    refused(sigak_cli("predict", bad, pets), "no network called 'mlp9'")
    write(text="{")
    refused(sigak_cli("predict", bad, pets), "damaged header")
    write(text="{}")
    refused(sigak_cli("predict", bad, pets), "its header lacks version, name")


class Hostile:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("form", ["torch", "plain"])
def test_a_pickle_is_never_executed(form, folder, sigak_cli, tmp_path):
    pets, trap = folder(), tmp_path / "executed"
    for suffix in (".pt", ".pth", ".th", ".safetensors"):
        bad = tmp_path / f"bad{suffix}"
        if form == "torch":
            torch.save({"state_dict": Hostile(trap)}, bad)
        else:
            bad.write_bytes(pickle.dumps({"state_dict": Hostile(trap)}))
        refused(sigak_cli("predict", bad, pets), "could execute code")
        refused(sigak_cli("import", bad, "--as", "mlp", "--out", "x.safetensors"))
        refused(sigak_cli("train", "mlp", pets, *TRAIN, "--pretrained", bad))
        assert not trap.exists()
    assert not Path("x.safetensors").exists()
    torch.load(tmp_path / "bad.pt", weights_only=False) if form == "torch" else pickle.load(
        io.BytesIO((tmp_path / "bad.pt").read_bytes())
    )
    assert trap.exists()  # the trap was a real one


# ------------------------------------------------------------------ runs


def test_a_run_is_never_overwritten(folder, sigak_cli, tmp_path):
    folder()
    assert sigak_cli("train", "mlp", "pets", *TRAIN).code == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    refused(sigak_cli("train", "mlp", "pets", *TRAIN), "already holds a run", "--resume run")
    refused(
        sigak_cli("train", "mlp", "pets", *TRAIN[:-1], "pets/cat/0.png"), "expects a folder", "file"
    )
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


def test_resume_refuses_what_contradicts_the_run(folder, sigak_cli):
    folder()
    folder("others", ("cat", "emu"))
    assert sigak_cli("train", "mlp", "pets", *TRAIN).code == 0
    resume = ("--resume", "run", "--quiet")
    refused(sigak_cli("train", "mlp", "pets", *resume, "--lr", 0.5), "--lr was 0.001")
    refused(sigak_cli("train", "lenet5", "pets", *resume), "holds a run of mlp, not of lenet5")
    refused(sigak_cli("train", "mlp", "others", *resume), "the data is not what run was trained on")
    refused(sigak_cli("train", "mlp", "pets", *resume, "--early-stop", 2), "EarlyStopping")
    refused(sigak_cli("train", "mlp", "pets", "--resume", "norun"), "norun does not exist")


def test_a_loss_that_is_no_number_stops_with_the_place(folder, sigak_cli, tmp_path):
    folder()
    arguments = ("--optimizer", "sgd", "--lr", 1e30, "--batch", 4, "--epochs", 3)
    done = sigak_cli("train", "mlp", "pets", *TRAIN, *arguments)
    refused(done, "became NaN or infinite in epoch ", ", step ", "try a lower --lr", code=1)
    assert not list((tmp_path / "run").glob("*.part"))


FULL_DISK = """
import resource, sys
from sigak.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a limit on file sizes stands for a full disk")
def test_a_full_disk_leaves_the_old_checkpoint(folder, sigak_cli, tmp_path, run_environment):
    folder(size=(8, 8))
    assert sigak_cli("train", "mlp", "pets", *TRAIN, "--size", 32).code == 0
    best = tmp_path / "run" / "best.safetensors"
    old = best.read_bytes()
    assert len(old) > 40_000
    command = ["train", "mlp", "pets", "--resume", "run", "--epochs", "3", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *command],
        cwd=tmp_path,
        env=run_environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("sigak: ")
    assert done.stderr.count("\n") == 1
    assert "could not be written" in done.stderr
    assert best.read_bytes() == old
    assert not list(best.parent.glob("*.part"))
    assert sigak_cli("predict", "run", "pets").code == 0


def test_a_picture_larger_than_a_bomb_is_named(digits_run, sigak_cli, monkeypatch, tmp_path):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("L", (9, 9)).save(tmp_path / "large.png")
    done = sigak_cli("predict", digits_run.folder, "large.png")
    assert done.code == 2
    assert "too large" in done.err

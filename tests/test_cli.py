"""The command line: exit codes, what goes where, and that every verb does its work."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import sigak
from sigak.cli import VERBS, main
from sigak.io.image import describe
from sigak.recipe import Options, Recipe


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == sigak.__version__
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for kind in VERBS[verb]:
        for field in fields(kind):
            assert field.metadata["help"].split()[0] in shown


def test_every_field_of_a_recipe_is_a_flag(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    for field in (*fields(Recipe), *fields(Options)):
        assert f"--{field.name.replace('_', '-')}" in shown


def test_the_whole_way(folder, sigak_cli):
    """data, train, evaluate, predict: each with JSON that another program can read."""
    folder(size=(8, 8))
    data = json.loads(sigak_cli("data", "pets", "--json", "--draw", "sheet.png").out)
    assert data["total"] == 20
    assert describe("sheet.png")["mode"] == "RGB"
    words = ("train", "mlp", "pets", "--epochs", 2, "--size", 8, "--lr", 0.01, "--out", "run")
    run = json.loads(sigak_cli(*words, "--json").out)
    assert run["folder"] == "run"
    assert len(run["history"]["loss"]) == 2
    found = json.loads(sigak_cli("evaluate", "run", "pets", "--json").out)
    assert found["split"] == "val"
    assert found["accuracy"] == run["evaluation"]["accuracy"]
    everything = json.loads(sigak_cli("evaluate", "run", "pets", "--split", "all", "--json").out)
    assert everything["count"] == 20
    answers = json.loads(sigak_cli("predict", "run", "pets/cat", "--json").out)
    assert len(answers) == 10


def test_people_read_tables(folder, sigak_cli, digits_run):
    folder(size=(8, 8))
    shown = sigak_cli("data", "pets")
    assert "20 pictures" in shown.out
    shown = sigak_cli("evaluate", digits_run.folder, "digits").out.splitlines()
    assert shown[0] == "digits, split test"
    assert any(line.split()[:1] == ["accuracy"] for line in shown)
    assert sum(len(line.split()) == 5 for line in shown) == 11  # a heading and ten classes
    run = sigak_cli("train", "mlp", "pets", "--epochs", 1, "--size", 8, "--out", "run")
    assert run.out == ""
    assert "epoch 1/1  loss " in run.err
    assert "best epoch 1, measured on val" in run.err


def test_models(sigak_cli):
    rows = json.loads(sigak_cli("models", "vgg3*", "--json").out)
    assert {row["name"] for row in rows} >= {"vgg3", "vgg3-dropout-bn"}
    shown = sigak_cli("models", "lenet5").out
    assert "61,706" in shown
    layers = sigak_cli("models", "lenet5", "--summary").out
    assert layers.splitlines()[-1].split() == ["trainable", "61,706"]
    assert len(sigak_cli("models").out.splitlines()) > 1300


def test_image(folder, sigak_cli):
    folder(count=2, size=(12, 16))
    assert "mirror" in sigak_cli("image", "--list-steps").out
    (fact,) = json.loads(sigak_cli("image", "pets/cat/0.png", "--json").out)
    assert fact["size"] == [12, 16]
    assert "size (12, 16)" in sigak_cli("image", "pets/cat/0.png").out
    assert sigak_cli("image", "pets/cat/0.png", "rotate=90", "--out", "one.png").code == 0
    assert describe("one.png")["size"] == (16, 12)
    assert sigak_cli("image", "pets", "resize=4,5", "--out", "many").code == 0


def test_pictures_of_one_name_do_not_overwrite_each_other(folder, sigak_cli):
    pets = folder(count=2)
    folder("pets", ("cat",), count=1, suffix=".bmp")
    assert sigak_cli("image", "pets", "mirror", "--out", "many").code == 0
    written = sorted(p.relative_to("many").as_posix() for p in Path("many").rglob("*.*"))
    assert written == ["cat/0-2.png", "cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]
    assert sigak_cli("image", pets / "dog" / "*.png", "mirror", "--out", "flat").code == 0
    assert sorted(p.name for p in Path("flat").iterdir()) == ["0.png", "1.png"]


def test_augment_draws_a_grid(folder, sigak_cli):
    folder(count=3)
    done = sigak_cli(
        "augment", "pets", "--augment", "flip=h,rotate=20", "--size", 16, "--rows", 2,
        "--out", "grid.png",
    )  # fmt: skip
    assert done.code == 0
    assert describe("grid.png")["size"][1] > 32


# ------------------------------------------------------------------ as a process


def process(*words, place, environment, **options):
    return subprocess.run(
        [sys.executable, "-m", "sigak.cli", *map(str, words)],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def test_standard_output_is_one_json_document(folder, tmp_path, run_environment):
    folder(size=(8, 8))
    words = ("train", "mlp", "pets", "--epochs", 1, "--size", 8, "--out", "run", "--json")
    done = process(*words, place=tmp_path, environment=run_environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["best_epoch"] == 1
    assert "Warning" not in done.stderr
    assert "\x1b" not in done.stderr  # no colours where nobody looks


@pytest.mark.skipif(os.name == "nt", reason="pipes close differently there")
def test_a_reader_that_stops_early_is_no_failure(tmp_path, run_environment):
    command = f"{sys.executable} -m sigak.cli models | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], env=run_environment, capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    assert done.returncode == 0

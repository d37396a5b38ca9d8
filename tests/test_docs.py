"""The documentation tells the truth: its Python runs, its commands work, its links lead on."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sigak
from sigak import cli, models, tasks
from sigak.io import image
from sigak.models._entry import count_parameters

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
TWINS = [(ROOT / "README.md", ROOT / "README.ko.md")] + [
    (ROOT / "docs" / korean.name, korean) for korean in sorted((ROOT / "docs/ko").glob("*.md"))
]
# Korean pages hold the same code, so their English twins run for both. The Python of pictures.md
# is run beside the tests of what it describes.
RUN_ELSEWHERE = {korean for _, korean in TWINS} | {ROOT / "docs/pictures.md"}


@dataclass(frozen=True)
class Block:
    language: str
    text: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page, in order; those in `languages` only, where any are given."""
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    return [Block(*pair) for pair in found if not languages or pair[0] in languages]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)


def commands(block: Block) -> Iterator[list[str]]:
    """The arguments of every `sigak ...` line of a shell block, also behind torchrun."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if block.language == "console" and not line.startswith("$ "):
            continue  # what a command printed
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words[:1] == ["sigak"]:
            yield words[1:]
        elif "sigak.cli" in words:
            yield words[words.index("sigak.cli") + 1 :]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


SHELL = ("console", "bash", "sh")


# ---------------------------------------------------------- everything stands where it should


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_and_picture_exists(page):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    local = [link.split("#")[0] for link in links if not re.match(r"https?:|mailto:|#", link)]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_line_is_understood(page, capsys):
    parser = cli._parser()
    for block in blocks(page, *SHELL):
        for words in commands(block):
            try:
                parser.parse_args(words)
            except SystemExit:
                pytest.fail(f"sigak {' '.join(words)}: {capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_of_a_kind_that_is_checked(page):
    known = {"python", "text", "json", "toml", *SHELL}
    assert {block.language for block in blocks(page)} <= known


def code(block: Block) -> str:
    """A block without its comments and spaces, in which translations may differ."""
    lines = [re.sub(r"(^|\s)#.*", "", line).rstrip() for line in block.text.splitlines()]
    return block.language + "\n" + "\n".join(re.sub(r"\s+", " ", line) for line in lines if line)


@pytest.mark.parametrize(("english", "korean"), TWINS, ids=lambda page: name_of(page))
def test_translations_have_the_same_headings_and_code(english, korean):
    levels = [re.findall(r"^#+(?= )", prose(page), re.M) for page in (english, korean)]
    assert levels[0] == levels[1]
    here, there = ([code(b) for b in blocks(p) if b.language != "text"] for p in (english, korean))
    assert here == there


def test_the_changelog_ends_at_the_version_of_the_package():
    versions = re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert versions[0] == sigak.__version__


# ---------------------------------------------------------- the pages run, from top to bottom


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with the files that the pages take for granted; the working folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SIGAK_DATA", raising=False)
    monkeypatch.setenv("SIGAK_CACHE", str(tmp_path / "cache"))
    noise = np.random.default_rng(0)
    image.save("photo.jpg", noise.integers(0, 256, (1000, 700, 3), dtype=np.uint8))
    for shade, label in enumerate(("bird", "cat", "dog")):
        for number in range(4):
            pixels = noise.integers(0, 60, (48, 64, 3), dtype=np.uint8) + 90 * shade
            image.save(f"photos/{label}/{number}.jpg", pixels)
    digits = sigak.load_data("digits").splits["test"]
    place = int(np.flatnonzero(digits.labels == 7)[0])
    Path("runs/demo/pictures").mkdir(parents=True)
    Image.fromarray(digits.pixels[place, :, :, 0]).resize((224, 224)).save(
        "runs/demo/pictures/7-1.png"
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are tiny
    yield tmp_path
    torch.set_num_threads(threads)


def why_not(words: list[str]) -> str:
    """Why a command is only parsed and not run here; empty where it is run."""
    if "--download" in words or "--pretrained" in words:
        return "it asks for published weights or data"
    if {"fashion-mnist", "mnist", "cifar10", "cifar100"} & set(words):
        return "it reads data that is not on every machine"
    return ""


def run_command(words: list[str]) -> None:
    """Run `sigak WORDS`; a training is cut to one epoch."""
    if words[0] == "train":
        words = [*words, "--epochs", "1", "--quiet"]
    assert cli.main(words) == 0, f"sigak {' '.join(words)}"


RUNNING = [
    page
    for page in PAGES
    if page not in RUN_ELSEWHERE
    and not page.name.startswith("add-a-")
    and (blocks(page, "python") or any(True for b in blocks(page, *SHELL) for _ in commands(b)))
]


@pytest.mark.parametrize("page", RUNNING, ids=name_of)
def test_the_page_runs_from_top_to_bottom(page, desk):
    namespace: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python":
            exec(compile(block.text, name_of(page), "exec"), namespace)
        elif block.language in SHELL:
            for words in commands(block):
                if not why_not(words):
                    run_command(words)


def module_from(page: Path, name: str, folder: Path, monkeypatch) -> object:
    """The first block of a page, imported as the module it says it is."""
    file = folder / f"{name.rpartition('.')[2]}.py"
    file.write_text(blocks(page, "python")[0].text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def rest_of(page: Path, module: object) -> dict[str, object]:
    """Run the other Python blocks of a page with the names of its first."""
    namespace = dict(vars(module))
    for block in blocks(page, "python")[1:]:
        exec(compile(block.text, name_of(page), "exec"), namespace)
    return namespace


def test_the_network_of_add_a_model_is_built_counted_and_trained(desk, monkeypatch):
    page = ROOT / "docs/add-a-model.md"
    module = module_from(page, "sigak.models.allconv", desk, monkeypatch)
    rest_of(page, module)
    monkeypatch.setattr(models, "FAMILIES", (*models.FAMILIES, "allconv"))
    for name in ("allconv", "allconv-wide"):
        assert count_parameters(models.create(name)) == models.entry(name).parameters
    for block in blocks(page, "console"):
        for words in commands(block):
            run_command(words)


def test_the_task_of_add_a_task_learns_and_answers(desk, monkeypatch):
    page = ROOT / "docs/add-a-task.md"
    module = module_from(page, "sigak.tasks.ordinal", desk, monkeypatch)
    row = rest_of(page, module)["ROW"]
    lenet = models.import_module("sigak.models.lenet")
    monkeypatch.setitem(lenet.MODELS, "lenet5-ordinal", row)
    monkeypatch.setattr(tasks, "TASKS", (*tasks.TASKS, "ordinal"))
    run = sigak.train("lenet5-ordinal", "digits", epochs=4, lr=3e-3, quiet=True)
    assert run.history["loss"][-1] < run.history["loss"][0] / 2
    figures = sigak.evaluate(run.checkpoint, "digits")
    assert figures["distance"] < 2.5  # guessing is off by 3.3 on average
    [answer] = sigak.predict(run.checkpoint, "runs/demo/pictures/7-1.png")
    assert answer.scores.sum() == pytest.approx(1.0)
    run_command(["predict", str(run.checkpoint), "runs/demo/pictures", "--save", "out"])
    assert (desk / "out/grades.csv").exists()


def test_the_format_of_add_a_format_is_read_and_trained_on(desk, monkeypatch):
    page = ROOT / "docs/add-a-format.md"
    module = module_from(page, "sigak.data.table", desk, monkeypatch)
    found = rest_of(page, module)
    [problem] = found["tones"].problems
    assert problem.source == "tones.csv:14"
    assert "lost.png" in problem.reason
    Path("bad.csv").write_text("picture,label\n", encoding="utf-8")
    with pytest.raises(sigak.SigakError, match="file, split is missing"):
        module.read("bad.csv")


@pytest.mark.slow
def test_the_demonstration_reads_digits_and_can_be_repeated(tmp_path):
    for folder in (tmp_path / "runs/demo", tmp_path / "runs/demo-2"):
        done = subprocess.run(
            [sys.executable, "-m", "sigak.demo"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert (folder / "report.html").exists()
        assert sigak.evaluate(folder, "digits")["accuracy"] >= 0.98
        assert len(list((folder / "pictures").glob("*.png"))) == 20

"""What predict can be given: pictures, folders, lists, videos; and answers as they come."""

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

import sigak
from sigak.data import Problem
from sigak.foreign import adopt
from sigak.io import image
from sigak.io.video import Video, Writer
from sigak.recording import Recorder
from sigak.sources import Source, find, shots
from sigak.structures import SigakError

pytest.importorskip("av")


def clip(path, count=6, size=(32, 40)):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    with Writer(path, 10) as writer:
        for i in range(count):
            writer.write(np.roll(noise, 2 * i, 1), i / 10)
    return path


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """mixed/a.png, mixed/b.mp4, mixed/deep/c.jpg, and a hidden one; the working folder."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    for name in ("mixed/a.png", "mixed/deep/c.jpg", "mixed/.hidden/d.png"):
        image.save(name, pixels)
    clip("mixed/b.mp4")
    return tmp_path


def names(given):
    return [source.name.replace(os.sep, "/") for source in find(given)]


def test_pictures_and_videos_are_found(desk):
    assert names("mixed") == ["mixed/a.png", "mixed/b.mp4", "mixed/deep/c.jpg"]
    assert names("mixed/*.mp4") == ["mixed/b.mp4"]
    assert names(Path("mixed/b.mp4")) == ["mixed/b.mp4"]
    assert names(["mixed/b.mp4", "mixed/a.png"]) == ["mixed/b.mp4", "mixed/a.png"]
    assert [s.moving for s in find("mixed")] == [False, True, False]
    assert find(find("mixed")) == find("mixed")
    with pytest.raises(SigakError, match="no picture found, and no video: nothing is no file"):
        find("nothing")


def test_arrays_keep_their_names(desk):
    pixels = np.zeros((8, 8, 3), np.uint8)
    assert names([pixels, pixels]) == ["image#0", "image#1"]
    assert names([pixels, "mixed/a.png", pixels]) == ["image#0", "mixed/a.png", "image#2"]


@pytest.mark.parametrize("address", ["rtsp://x/1", "http://x/a.mp4", "udp://x:1", "0", "12"])
def test_addresses_are_moving_and_nothing_is_opened(desk, address):
    assert find(address) == [Source(address, address, moving=True)]


def test_a_file_is_stronger_than_a_camera(desk):
    image.save("0.png", np.zeros((8, 8, 3), np.uint8))
    Path("0.png").rename("0")
    assert find("0") == [Source("0", Path("0"))]


def test_a_list_names_one_a_line(desk):
    Path("lists").mkdir()
    Path("lists/here.txt").write_text("mixed/a.png\n\n  mixed/b.mp4\nrtsp://x/1\n", "utf-8")
    assert names("lists/here.txt") == ["mixed/a.png", "mixed/b.mp4", "rtsp://x/1"]
    Path("mixed/beside.txt").write_text("a.png\ndeep/*.jpg\n", "utf-8-sig")
    assert names("mixed/beside.txt") == ["mixed/a.png", "mixed/deep/c.jpg"]


def test_lists_that_are_wrong(desk):
    for text, reason in (
        (b"\n", "it is empty"),
        (b"a.txt\n", "names another list, a.txt"),
        (b"\xff\xfe\x80", "it is no text"),
    ):
        Path("list.txt").write_bytes(text)
        with pytest.raises(SigakError, match=reason):
            find("list.txt")


def test_a_missing_picture_of_a_list_keeps_its_place(desk, digits_run):
    Path("list.txt").write_text("mixed/a.png\ngone.jpg\nmixed/deep/c.jpg\n", "utf-8")
    problems: list[Problem] = []
    found = sigak.load(digits_run.folder).predict("list.txt", problems=problems)
    assert len(found) == 2
    assert [p.source for p in problems] == ["gone.jpg"]


def test_frames_come_in_turn(desk):
    found = list(shots(find("mixed"), every=4))
    kept = [shot.name.replace(os.sep, "/") for shot in found]
    assert kept == ["mixed/a.png", "mixed/b.mp4#0", "mixed/b.mp4#4", "mixed/deep/c.jpg"]
    assert found[2].frame.seconds == pytest.approx(0.4, abs=0.01)


def test_a_video_that_cannot_be_opened(desk):
    Path("mixed/b.mp4").write_bytes(b"nothing of the kind")
    problems: list[Problem] = []
    assert len(list(shots(find("mixed"), problems=problems))) == 2
    assert problems[0].source.endswith("b.mp4")
    with pytest.raises(SigakError, match="cannot be opened as a video"):
        list(shots(find("mixed")))


def test_memory_does_not_grow_with_the_video(desk, digits_run):
    clip("long.mp4", 240, (120, 160))
    answers = sigak.load(digits_run.folder).stream("long.mp4")
    for _ in range(40):
        next(answers)
    tracemalloc.start()
    count = sum(1 for _ in answers)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 200
    assert peak < 60 * 120 * 160 * 3  # far from all of them


def test_the_command_line_streams(desk, digits_run, sigak_cli):
    done = sigak_cli("predict", digits_run.folder, "mixed", "--json", "--save", "out")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert len(lines) == 8
    assert lines[0]["source"].endswith("a.png")
    assert "frame" not in lines[0]
    assert [line["frame"] for line in lines[1:7]] == list(range(6))
    assert {p.name for p in Path("out").iterdir()} == {
        "0001-a.png",
        "0002-b.mp4",
        "0002-b.jsonl",
        "0003-c.png",
        "predictions.json",
        "predictions.csv",
    }
    kept = [json.loads(line) for line in Path("out/0002-b.jsonl").read_text().splitlines()]
    assert kept == lines[1:7]
    assert len(list(Video("out/0002-b.mp4").frames())) == 6
    said = sigak_cli("predict", digits_run.folder, "mixed/b.mp4", "--every", "3").out
    assert [line.split(":")[0][-7:] for line in said.splitlines()] == ["b.mp4#0", "b.mp4#3"]


def test_drawing_needs_no_folder(desk, digits_run, sigak_cli):
    done = sigak_cli("predict", digits_run.folder, "mixed/a.png", "--draw")
    assert done.code == 0, done.err
    assert Path("predictions/0001-a.png").exists()
    assert "answers and pictures are in predictions" in done.err


def test_pictures_are_one_document_as_ever(desk, digits_run, sigak_cli):
    done = sigak_cli("predict", digits_run.folder, "mixed/a.png", "mixed/deep", "--json")
    assert len(json.loads(done.out)) == 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["mixed/b.mp4", "--every", "0"], "--every must be at least 1, received 0"),
        (["mixed/b.mp4", "--track"], "--track is for detectors; leave it out"),
        (["mixed/b.mp4", "--save", "out", "--coco"], "--coco is for"),
        (["mixed/none.mp4"], "no picture found, and no video"),
    ],
)
def test_mistakes_are_answered(desk, digits_run, sigak_cli, words, reason):
    done = sigak_cli("predict", digits_run.folder, *words)
    assert done.code == 2
    assert reason in done.err


def test_what_was_answered_is_kept(desk, digits_run):
    predictor = sigak.load(digits_run.folder)
    answers = predictor.answers("mixed")

    def interrupted():
        with Recorder(Path("out"), predictor.task) as recorder:
            for _ in range(4):
                recorder.add(*next(answers))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(json.loads(Path("out/predictions.json").read_text("utf-8"))) == 1
    assert len(Path("out/0002-b.jsonl").read_text("utf-8").splitlines()) == 3
    assert len(list(Video("out/0002-b.mp4").frames())) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C to a whole console")
@pytest.mark.slow
def test_ctrl_c_ends_cleanly(desk, digits_run, run_environment):
    clip("long.mp4", 3000, (120, 160))
    words = ["predict", str(digits_run.folder), "long.mp4", "--save", "out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sigak.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=run_environment,
        # Background jobs of a shell ignore Ctrl-C, and so does what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for _ in range(20):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.splitlines()[-1] == "sigak: interrupted"
    assert "Traceback" not in said
    lines = Path("out/0001-long.jsonl").read_text("utf-8").splitlines()
    assert 10 <= len(lines) < 3000
    assert len(list(Video("out/0001-long.mp4").frames())) == len(lines)


@pytest.mark.data
def test_a_detector_follows_a_dog(desk, sigak_cli):
    data = Path(os.environ["SIGAK_DATA"])
    adopt(data / "weights/yolov5n.pt", "yolov5n", classes=None, out="v5n.safetensors")
    dog = cv2.resize(image.read(data / "photos/darknet-dog.jpg"), (480, 360))
    with Writer("dog.mp4", 10) as writer:
        for i in range(6):
            writer.write(np.ascontiguousarray(dog[:, 4 * i : 4 * i + 400]), i / 10)
    words = ("--track", "--save", "out", "--txt", "--json", "--size", "320")
    done = sigak_cli("predict", "v5n.safetensors", "dog.mp4", *words)
    assert done.code == 0, done.err
    frames = [json.loads(line)["objects"] for line in done.out.splitlines()]
    dogs = [[one["id"] for one in objects if one["label"] == "dog"] for objects in frames]
    assert dogs == [dogs[0]] * 6
    assert len(dogs[0]) == 1
    labels = sorted(p.name for p in Path("out/labels").iterdir())
    assert labels == [f"0001-dog-{i:06d}.txt" for i in range(6)]
    assert len(Path("out/labels", labels[0]).read_text().splitlines()) == len(frames[0])

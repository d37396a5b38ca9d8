"""The report: what is said about a run, and a page that is whole, safe and asks for nothing."""

from __future__ import annotations

import base64
import io
import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sigak.metrics import Classification
from sigak.recipe import Recipe
from sigak.report import diagnose, write
from sigak.report._markup import Markup, tag
from sigak.report._parts import duration, number, percent
from sigak.report._pictures import png
from sigak.structures import SigakError

_HOSTILE = "<script>alert(1)</script>\"'&​고양이.jpg"


def _curve(start: float, end: float, epochs: int = 30, speed: float = 4) -> list[float]:
    """From start to end, fast at first, flat in the end."""
    return [end + (start - end) * math.exp(-i / speed) for i in range(epochs)]


def _history(**series: list[Any]) -> dict[str, list[Any]]:
    return {"epoch": list(range(1, len(series["loss"]) + 1)), **series}


# What is said about a run


def test_overfitting_names_the_gap_and_the_epoch() -> None:
    rising = _curve(2, 0.4)[:12] + [0.52 + 0.05 * i for i in range(18)]
    text = diagnose(
        _history(
            loss=_curve(2, 0.01),
            val_loss=rising,
            accuracy=_curve(0.3, 0.991),
            val_accuracy=_curve(0.3, 0.923),
        )
    )
    assert "Train accuracy 99.1 %, validation 92.3 %: a gap of 6.8 points" in text
    assert "the validation loss has risen since epoch 12: the network overfits" in text


def test_a_gap_alone_is_overfitting() -> None:
    text = diagnose(
        _history(
            loss=_curve(2, 0.1),
            val_loss=_curve(2, 0.6),
            accuracy=_curve(0.3, 0.98),
            val_accuracy=_curve(0.3, 0.85),
        )
    )
    assert "a gap of 13.0 points: the network overfits" in text


def test_a_single_noisy_epoch_is_no_rise() -> None:
    val_loss = _curve(2, 0.3)
    val_loss[20] = 0.6
    text = diagnose(
        _history(
            loss=_curve(2, 0.2),
            val_loss=val_loss,
            accuracy=_curve(0.3, 0.95),
            val_accuracy=_curve(0.3, 0.93),
        )
    )
    assert "no sign of overfitting" in text


def test_underfitting() -> None:
    flat = _curve(2.3, 1.7)
    text = diagnose(
        _history(
            loss=flat,
            val_loss=flat,
            accuracy=_curve(0.1, 0.42),
            val_accuracy=_curve(0.1, 0.43),
        )
    )
    assert "validation ahead by 1.0 points: the network underfits" in text


def test_underfitting_shows_in_the_losses_alone() -> None:
    text = diagnose(_history(loss=_curve(2.3, 2.2), val_loss=_curve(2.3, 2.21)))
    assert text.startswith("Train loss 2.2, validation 2.21: the network underfits")


def test_stopped_too_early() -> None:
    falling = [2 - 0.15 * i for i in range(10)]
    rising = [0.3 + 0.04 * i for i in range(10)]
    text = diagnose(_history(loss=falling, val_loss=falling, accuracy=rising, val_accuracy=rising))
    assert "still improving" in text
    assert "--epochs 20" in text


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_diverged_into_no_number(broken: float) -> None:
    text = diagnose(_history(loss=[2.0, 1.5, broken, broken], val_loss=[2.0, 1.6, 1.6, 1.6]))
    assert "train loss broke in epoch 3: training diverged" in text


def test_validation_diverged() -> None:
    text = diagnose(_history(loss=[2.0, 1.5, 1.2], val_loss=[2.0, math.inf, math.nan]))
    assert "validation loss broke in epoch 2: training diverged" in text


def test_diverged_upwards() -> None:
    text = diagnose(_history(loss=[1.9, 1.0, 0.8, 9.0], accuracy=[0.4, 0.6, 0.7, 0.1]))
    assert "grown from 0.8 in epoch 3 to 9" in text
    assert "--lr" in text


def test_noise_of_a_tiny_loss_is_not_divergence() -> None:
    text = diagnose(
        _history(
            loss=[0.010, 0.005, 0.012],
            val_loss=[0.012, 0.011, 0.0115],
            accuracy=[0.996, 0.999, 0.995],
            val_accuracy=[0.995, 0.996, 0.995],
        )
    )
    assert "no sign of overfitting" in text


def test_healthy() -> None:
    text = diagnose(
        _history(
            loss=_curve(2, 0.2),
            val_loss=_curve(2, 0.3),
            accuracy=_curve(0.3, 0.95),
            val_accuracy=_curve(0.3, 0.93),
        )
    )
    assert text == (
        "Train accuracy 95.0 %, validation 93.0 %: a gap of 2.0 points: "
        "no sign of overfitting or underfitting."
    )


def test_one_epoch_only() -> None:
    text = diagnose(_history(loss=[2.0], val_loss=[1.9], accuracy=[0.3], val_accuracy=[0.35]))
    assert "One epoch shows no trend yet" in text


def test_no_validation() -> None:
    text = diagnose(_history(loss=_curve(2, 0.1), accuracy=_curve(0.3, 0.9)))
    assert text.startswith("Train accuracy 90.0 %; nothing was held out for validation")
    assert "still falling" not in text
    assert "still falling" in diagnose(_history(loss=[2.0, 1.5, 1.0]))


def test_epochs_without_validation_are_passed_over() -> None:
    for unmeasured in (None, math.nan):
        val_loss = [v if i % 2 else unmeasured for i, v in enumerate(_curve(2, 0.3))]
        text = diagnose(_history(loss=_curve(2, 0.2), val_loss=val_loss))
        assert text.startswith("Train loss 0.201, validation 0.301: no sign")
    never = [math.nan] * 30
    assert "nothing was held out" in diagnose(_history(loss=_curve(2, 0.2), val_loss=never))


def test_nothing_recorded() -> None:
    assert diagnose({}) == "No epoch was recorded."


_values = st.lists(st.none() | st.floats(), max_size=8)


@given(_values, _values, _values, _values)
def test_every_history_gets_a_sentence(
    loss: list[Any], val_loss: list[Any], accuracy: list[Any], val_accuracy: list[Any]
) -> None:
    text = diagnose(
        {"loss": loss, "val_loss": val_loss, "accuracy": accuracy, "val_accuracy": val_accuracy}
    )
    assert text.endswith(".")


# The page


def _evaluation(classes: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, classes, 400)
    logits = 2 * rng.normal(size=(400, classes)) + 3 * np.eye(classes)[truth]
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    metric = Classification([f"kind {i}" for i in range(classes)])
    metric.update(scores, truth, -np.log(scores[np.arange(400), truth]))
    return metric.compute()


def _run(classes: int = 4, name: str = "cat.jpg") -> dict[str, Any]:
    image = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    return {
        "title": f"run of {name}",
        "model": {"name": "lenet5", "task": "classify", "input": [32, 32, 3],
                  "parameters": {"total": 61706, "trainable": 61706}},
        "data": {"name": name, "classes": [f"kind {i}" for i in range(classes)],
                 "counts": {"train": 45000, "val": 5000},
                 "problems": [{"source": name, "reason": f"no {name}", "action": "skipped"}]},
        "history": _history(loss=[2.0, 1.0, 0.5], val_loss=[2.0, None, 1.0], lr=[0.1, 0.1, 0.01],
                            accuracy=[0.2, 0.5, 0.8], val_accuracy=[0.2, None, 0.6]),
        "best_epoch": 3,
        "evaluation": _evaluation(classes),
        "evaluated_on": "test",
        "mistakes": [{"source": name, "truth": "kind 0", "label": np.int64(1), "score": 0.9,
                      "truth_score": 0.05, "image": image}],
        "samples": [{"source": name, "label": 0, "image": image[..., :1]}],
        "recipe": Recipe(augment="flip=h,rotate=15").asdict(),
        "environment": {"torch": "2.15", "note": name},
        "seconds": 754.0,
        "images_per_second": 11382.4,
        "checkpoint": "best.safetensors",
    }  # fmt: skip


class _Reader(HTMLParser):
    """Every element with its attributes, the text, and whether each element is closed in turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\N{NO-BREAK SPACE}", " ") + "\n"

    def ids(self) -> list[str | None]:
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]


def _read(path: Path) -> _Reader:
    return _Reader(path.read_text(encoding="utf-8"))


_ALL = [
    "learning", "mistakes", "confusion", "classes", "calibration", "setup", "samples", "problems",
    "recipe", "environment",
]  # fmt: skip


def test_a_whole_run_shows_every_section(tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "report.html", _run())
    page = _read(path)
    assert page.ids() == _ALL
    links = [a["href"] for name, a in page.elements if name == "a"]
    assert links == [f"#{name}" for name in _ALL]
    for shown in ("12 min 34 s", "11,382", "of 3", "61,706", "best.safetensors", "45,000"):
        assert shown in page.text
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("classes", [2, 6, 31])
def test_a_page_asks_for_nothing(tmp_path: Path, classes: int) -> None:
    page = _read(write(tmp_path / "r.html", _run(classes)))
    for name, attributes in page.elements:
        assert name not in ("script", "link", "iframe", "object", "base")
        assert not [key for key in attributes if key.startswith("on")]
        for key in ("src", "href"):
            assert (attributes.get(key) or "#").startswith(("#", "data:image/png;base64,"))
    policy = [a["content"] for _, a in page.elements if "http-equiv" in a]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert "url(" not in page.text
    assert "@import" not in page.text


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    path = write(tmp_path / "r.html", _run(name=_HOSTILE))
    page = _read(path)
    assert "<script" not in path.read_text(encoding="utf-8")
    assert page.ids() == _ALL
    assert page.text.count(_HOSTILE) >= 6
    assert "kind 0 taken for kind 1" in [a.get("alt") for _, a in page.elements]


def test_names_that_are_not_unicode_are_shown_as_escapes(tmp_path: Path) -> None:
    page = _read(write(tmp_path / "r.html", {"environment": {"file": "caf\udce9.jpg"}}))
    assert "caf\\udce9.jpg" in page.text


@pytest.mark.parametrize("key", list(_run()))
def test_any_key_may_be_missing_or_none(tmp_path: Path, key: str) -> None:
    whole = _run()
    missing = write(tmp_path / "a.html", {k: v for k, v in whole.items() if k != key})
    none = write(tmp_path / "b.html", whole | {key: None})
    assert _read(missing).elements == _read(none).elements


def test_an_empty_run_is_a_page_without_sections(tmp_path: Path) -> None:
    page = _read(write(tmp_path / "r.html", {}))
    assert page.ids() == []
    assert "Report of a run" in page.text


def test_numbers_of_the_evaluation_are_shown(tmp_path: Path) -> None:
    run = _run(3)
    confusion = [[8, 2, 0], [1, 9, 0], [0, 0, 0]]
    per_class = [
        {"name": "good", "precision": 0.9, "recall": 0.9, "f1": 0.9, "support": 10},
        {"name": "absent", "precision": None, "recall": None, "f1": None, "support": 0},
        {"name": "weak", "precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 10},
    ]
    run["evaluation"] = {"accuracy": 0.85, "count": 20, "confusion": confusion,
                         "per_class": per_class}  # fmt: skip
    page = _read(write(tmp_path / "r.html", run))
    titles = [a["title"] for name, a in page.elements if name == "td" and "title" in a]
    assert "good, taken for absent: 2 (20.0\N{NO-BREAK SPACE}%)" in titles
    assert len(titles) == 9
    assert re.findall("weak|good|absent", page.text)[-3:] == ["weak", "good", "absent"]
    assert "64.0–94.8 (95 %)" in page.text  # Wilson's interval of 17 in 20
    assert "calibration" not in page.ids()


def test_many_classes_become_a_heat_map(tmp_path: Path) -> None:
    page = _read(write(tmp_path / "r.html", _run(31)))
    heat = next(a["src"] for name, a in page.elements if a.get("class") == "heat sharp")
    assert heat is not None
    picture = Image.open(io.BytesIO(base64.b64decode(heat.partition(",")[2])))
    assert picture.size == (31, 31)
    alpha = np.asarray(picture)[..., 3]
    confusion = np.array(_run(31)["evaluation"]["confusion"])
    assert ((alpha > 0) == (confusion > 0)).all()


def test_perfect_predictions_confuse_nothing(tmp_path: Path) -> None:
    metric = Classification(["a", "b"])
    metric.update(np.eye(2), np.arange(2))
    page = _read(write(tmp_path / "r.html", {"evaluation": metric.compute()}))
    assert page.ids() == ["confusion", "classes", "calibration"]
    assert "Most confused" not in page.text


def test_curves_break_at_holes_and_mark_the_best_epoch(tmp_path: Path) -> None:
    page = _read(write(tmp_path / "r.html", _run()))
    paths = [a["d"] for name, a in page.elements if name == "path"]
    moves = [(d or "").count("M") for d in paths]
    assert moves == [1, 2, 1, 2, 1]  # train and validation loss, then accuracy, then learning rate
    assert page.text.count("best: 3") == 3
    assert "epoch 3: validation 60 %" in page.text


@pytest.mark.parametrize(
    "history",
    [
        _history(loss=[2.0], val_loss=[1.0]),
        _history(loss=[0.0, 0.0, 0.0], lr=None),
        _history(loss=[math.nan, math.nan]),
        _history(loss=[1.0, math.inf, 1e30]),
        _history(loss=[1e-12, 2e-12]),
        {"loss": [3.0, 2.0]},
    ],
)
def test_odd_histories_are_drawn(tmp_path: Path, history: dict[str, Any]) -> None:
    page = _read(write(tmp_path / "r.html", {"history": history, "best_epoch": 1}))
    assert page.ids() == ["learning"]
    for name, attributes in page.elements:
        if name in ("path", "line", "circle"):
            assert "nan" not in str(attributes)
            assert "inf" not in str(attributes)


def _command(path: Path) -> str:
    written = re.search("<pre>(.*)</pre>", path.read_text(encoding="utf-8"))
    assert written is not None
    return "".join(_Reader(written[1]).text.splitlines())


def test_the_command_repeats_the_recipe(tmp_path: Path) -> None:
    run = _run(name="my pictures")
    words = shlex.split(_command(write(tmp_path / "r.html", run)))
    assert words[:4] == ["sigak", "train", "lenet5", "my pictures"]
    flags = dict(zip(words[4::2], words[5::2]))
    for name, value in run["recipe"].items():
        assert flags[f"--{name.replace('_', '-')}"] == str(value)


def test_a_command_that_is_given_is_shown_instead(tmp_path: Path) -> None:
    given = "sigak train lenet5 --lr 0.5"
    assert _command(write(tmp_path / "r.html", _run() | {"command": given})) == given


def test_a_page_of_a_small_run_is_small(tmp_path: Path) -> None:
    run = _run(10)
    run["mistakes"] *= 200
    run["samples"] = [run["samples"][0] | {"label": k} for k in range(10) for _ in range(100)]
    path = write(tmp_path / "r.html", run)
    assert path.stat().st_size < 2_000_000
    assert [name for name, _ in _read(path).elements].count("img") == 24 + 10 * 12


def test_a_failed_report_leaves_the_old_one(tmp_path: Path) -> None:
    path = write(tmp_path / "r.html", _run())
    before = path.read_bytes()
    broken = _run()
    broken["mistakes"][0]["image"] = np.zeros((4, 4, 2), np.uint8)
    with pytest.raises(SigakError, match=r"uint8 array .* received uint8 \(4, 4, 2\)"):
        write(path, broken)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SigakError, match="is a folder"):
        write(tmp_path, _run())


# Parts


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 4]), st.integers(0, 99))
def test_png_is_read_back_as_it_was(height: int, width: int, channels: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    with Image.open(io.BytesIO(png(image))) as picture:
        read = np.asarray(picture).reshape(image.shape)
    assert (read == image).all()


@pytest.mark.parametrize("shape", [(400, 300, 3), (3, 2000, 1), (161, 161), (500, 4, 4)])
def test_large_pictures_are_shrunk(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = np.full(shape, 200, np.uint8)
    page = _read(write(tmp_path / "r.html", {"mistakes": [{"image": image}]}))
    source = next(a["src"] for name, a in page.elements if name == "img") or ""
    picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert max(picture.size) <= 160
    assert (np.asarray(picture) == 200).all()


def test_markup_escapes_what_is_not_markup() -> None:
    inner = tag("b", "<&>")
    assert tag("p", inner, "'<i>'", None, class_='"x"') == (
        '<p class="&quot;x&quot;"><b>&lt;&amp;&gt;</b>&#x27;&lt;i&gt;&#x27;</p>'
    )
    assert isinstance(inner, Markup)


def test_numbers_as_people_write_them() -> None:
    plain = [text.replace("\N{NO-BREAK SPACE}", " ") for text in (
        duration(12.34), duration(59.97), duration(245), duration(7620), percent(0.9234),
        percent(None), percent(math.nan), number(0.31274), number(1250), number(None),
    )]  # fmt: skip
    assert plain == [
        "12.3 s", "1 min 00 s", "4 min 05 s", "2 h 07 min", "92.3 %", "–", "–", "0.3127", "1,250",
        "–",
    ]  # fmt: skip


def test_detection_is_diagnosed_by_its_average_precision():
    history = {"loss": [9.0, 5.0, 4.0, 3.0], "val_map": [0.0, 0.2, 0.4, 0.6]}
    assert diagnose(history).endswith("still rising: train for more (--epochs).")
    history["val_map"] = [0.2, 0.6, 0.6, 0.595]
    assert "best in epoch 2: 60.0%. It had stopped rising" in diagnose(history)
    history["val_map"] = [0.0, 0.0, 0.0, 0.0]
    assert "Hardly anything was found yet" in diagnose(history)

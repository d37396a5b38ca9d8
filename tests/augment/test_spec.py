import pytest

from sigak.augment import HELP, PRESETS, Pipeline
from sigak.structures import SigakError

SIZE = (32, 48)


@pytest.mark.parametrize(
    ("spec", "written"),
    [
        ("", "none"),
        ("none", "none"),
        (" rotate = 15 , flip=h ", "flip=h,rotate=15"),
        ("shift=0.1/0.2,fill=reflect", "shift=0.1/0.2"),
        ("rotate=15,rotate=0", "none"),
        ("medium,rotate=0,mixup=0.2,fill=nearest", None),
        *[(word, None) for word in PRESETS],
    ],
)
def test_the_written_form_comes_back(spec: str, written: str | None) -> None:
    pipeline = Pipeline.parse(spec, SIZE)
    assert written is None or str(pipeline) == written
    assert Pipeline.parse(str(pipeline), SIZE) == pipeline
    assert bool(pipeline) == (str(pipeline) != "none")


def test_a_later_word_wins_over_a_preset() -> None:
    assert "rotate" not in str(Pipeline.parse("medium,rotate=0", SIZE))
    assert "rotate=3" in str(Pipeline.parse("medium,rotate=3", SIZE))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rotat=15", "no augmentation is called 'rotat'; did you mean rotate"),
        ("heavy", "no augmentation is called 'heavy'"),
        ("medum", "did you mean medium"),
        ("rotate", "rotate needs a value"),
        ("rotate=fast", "rotate must be a number from 0 to 180, received 'fast'"),
        ("rotate=-15", "from 0 to 180, received '-15'"),
        ("rotate=nan", "from 0 to 180, received 'nan'"),
        ("rotate=1/2", "rotate takes one number, received '1/2'"),
        ("shift=1/2/3", "shift takes one number or two"),
        ("shift=2", "shift must be a number from 0 to 1, received '2'"),
        ("crop=2.5", "crop must be a whole number from 0 to 4096, received '2.5'"),
        ("flip=x", "flip must be h or v or both or alternate, received 'x'"),
        ("scale=0.5", "did you mean zoom"),
        ("mosaic=1,fill=constant", "leave fill out"),
        ("mosaic=1,perspective=0.1", "leave perspective out"),
        ("mixup=1,blend=1", "choose one kind"),
        ("fill=wrap", "fill must be reflect or nearest or constant or gray, received 'wrap'"),
    ],
)
def test_mistakes_are_explained(spec: str, message: str) -> None:
    with pytest.raises(SigakError, match=message):
        Pipeline.parse(spec, SIZE)


def test_a_size_without_pixels_is_refused() -> None:
    with pytest.raises(SigakError, match="at least 1 pixel"):
        Pipeline.parse("none", (0, 32))


def test_every_name_has_a_help_with_an_example_that_parses() -> None:
    for name, text in HELP.items():
        example = text.split(f"{name}=")[1].split(",")[0].split(" ")[0]
        assert name in str(Pipeline.parse(f"flip=h,{name}={example}", SIZE)) or name == "fill"

"""The page of all networks, docs/models.md and its Korean twin, written from the tables themselves.

`python -m sigak.catalogue docs` writes both anew; a test compares them with what stands there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from sigak import models
from sigak.models._entry import Entry
from sigak.models._published import CLASSICS, SOURCES, Score, scores
from sigak.structures import SigakError

__all__ = ["LANGUAGES", "page", "write"]

# What the page says in each language, and where it stands below the folder of documentation.
LANGUAGES = {
    "en": {
        "file": "models.md",
        "title": "All networks",
        "intro": (
            "Every network below is built, trained, evaluated, explained and used by its name. "
            "Any other name of timm works too; `sigak models PATTERN` lists them all with the "
            "weights there are. This page is written by `make docs` from the tables of the code."
        ),
        "compare": (
            "Size, depth, multiply-adds, published accuracy and the speed on your machine, side "
            "by side, as a table and as a chart; without names, of the classics:"
        ),
        "columns": (
            "Parameters are counted as Keras does, with the statistics of batch norm. Weights "
            "are tags for `--pretrained`, the default first. Top-1 is the accuracy on "
            "ImageNet that the publisher of the default weights gives, in per cent, or of other "
            "weights of the network where there is none; it was not measured here. Publishers:"
        ),
        "head": "name|parameters|input|weights|licence|published top-1|paper|note",
        "paper": "paper",
        "more": "and {} more",
    },
    "ko": {
        "file": "ko/models.md",
        "title": "모든 신경망",
        "intro": (
            "아래의 신경망은 모두 이름만으로 만들고, 학습하고, 평가하고, 설명하고, 사용할 수 "
            "있습니다. 그 밖에 timm에 있는 이름도 모두 쓸 수 있으며, `sigak models PATTERN`은 "
            "쓸 수 있는 가중치와 함께 전체 목록을 보여 줍니다. 이 페이지는 코드의 표를 바탕으로 "
            "`make docs`가 만듭니다."
        ),
        "compare": (
            "크기, 깊이, 곱셈-덧셈 횟수, 공개된 정확도, 그리고 내 컴퓨터에서 잰 속도를 표와 "
            "그림으로 나란히 비교합니다. 이름을 쓰지 않으면 대표적인 분류 신경망을 비교합니다."
        ),
        "columns": (
            "매개변수는 Keras처럼 배치 정규화의 통계까지 셉니다. 가중치는 `--pretrained`에 쓰는 "
            "이름이며 첫째가 기본값입니다. Top-1은 기본 가중치를 배포한 곳이 밝힌 ImageNet "
            "정확도(%)이고, 없으면 같은 신경망의 다른 가중치의 값입니다. 여기서 직접 잰 값이 "
            "아닙니다. 출처:"
        ),
        "head": "이름|매개변수|입력|가중치|라이선스|공개된 top-1|논문|참고",
        "paper": "논문",
        "more": "외 {}개",
    },
}
_TASKS = {
    "en": {
        "classify": "Classification",
        "generate": "Generation",
        "detect": "Detection",
        "segment": "Segmentation",
        "segment_volume": "Segmentation of volumes",
        "instances": "Instance segmentation",
        "prompt": "Segmentation by prompts",
    },
    "ko": {
        "classify": "분류",
        "generate": "생성",
        "detect": "검출",
        "segment": "분할",
        "segment_volume": "볼륨 분할",
        "instances": "인스턴스 분할",
        "prompt": "프롬프트로 분할",
    },
}
_COMMANDS = """```bash
sigak models --compare lenet5 lstm-rows mlp --seconds 0.1 --sort images_per_second --out speed.csv
sigak models --compare --no-speed "vgg3*" --json
```"""


def page(language: str) -> str:
    """The whole page as Markdown, in "en" or "ko"."""
    words = LANGUAGES[language]
    sources = ", ".join(f"[{name}]({address})" for name, address in SOURCES.items())
    parts = [f"# {words['title']}", words["intro"], words["compare"], _COMMANDS]
    parts.append(f"{words['columns']} {sources}.")
    for task, families in _tasks().items():
        parts.append(f"## {_TASKS[language].get(task, task.capitalize())}")
        for family, names in families.items():
            parts.append(f"### {family}")
            parts.append(_table(names, words))
    return "\n\n".join(parts) + "\n"


def write(folder: str | Path) -> list[Path]:
    """Write the page in every language below the `folder` of the documentation; the files."""
    files = []
    for language, words in LANGUAGES.items():
        file = Path(folder, words["file"])
        if not file.parent.is_dir():
            raise SigakError(
                f"there is no folder {file.parent}; name the folder that holds the documentation"
            )
        file.write_text(page(language), encoding="utf-8", newline="\n")
        files.append(file)
    return files


def _tasks() -> dict[str, dict[str, list[str]]]:
    """{task: {family: names}}, in the order of the table of contents; of timm the classics alone,
    which are listed by their own names.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for family, name in _listed():
        found.setdefault(models.entry(name).task, {}).setdefault(family, []).append(name)
    return found


def _listed() -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for family in models.FAMILIES:
        table = import_module(f"sigak.models.{family}").MODELS
        names = [n for n in CLASSICS if n in table] if family == "timm_nets" else list(table)
        for name in names:
            if name not in seen:
                yield family, name
        seen |= set(names)


def _table(names: Sequence[str], words: dict[str, str]) -> str:
    head = words["head"].split("|")
    rows = [head, ["---"] * len(head), *(_cells(name, words) for name in names)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cells(name: str, words: dict[str, str]) -> list[str]:
    row: Entry = models.entry(name)
    published = scores(name)
    return [
        f"`{name}`",
        f"{row.parameters[0]:,}",
        f"{row.input.sides(' x ')} {row.input.color}",
        _weights(row, words),
        row.licence,
        _score(published[0]) if published else "-",
        f"[{words['paper']}]({row.paper})" if row.paper else "-",
        row.note.replace("|", "\\|") or "-",
    ]


def _weights(row: Entry, words: dict[str, str]) -> str:
    tags = [f"`{weights.tag}`" for weights in row.weights]
    if not tags:
        return "-"
    return tags[0] if len(tags) == 1 else f"{tags[0]} {words['more'].format(len(tags) - 1)}"


def _score(score: Score) -> str:
    side = f", {score.side} px" if score.side else ""
    return f"{score.top1:.1f} ({score.source}{side})"


if __name__ == "__main__":
    for written in write(sys.argv[1] if len(sys.argv) > 1 else "docs"):
        print(written)

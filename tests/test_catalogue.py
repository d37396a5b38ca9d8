"""The page of all networks is what the tables say."""

from pathlib import Path

import pytest

from sigak import models
from sigak.catalogue import LANGUAGES, page, write
from sigak.models._published import CLASSICS
from sigak.structures import SigakError

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_is_up_to_date(language):
    written = (DOCS / LANGUAGES[language]["file"]).read_text(encoding="utf-8")
    assert written == page(language), "the tables changed: run `make docs`"


def test_every_network_of_our_families_and_every_classic_has_one_row():
    rows = [line.split("`")[1] for line in page("en").splitlines() if line.startswith("| `")]
    timm = set(models.import_module("sigak.models.timm_nets").MODELS)
    ours = {
        name
        for family in models.FAMILIES
        if family != "timm_nets"
        for name in models.import_module(f"sigak.models.{family}").MODELS
    }
    assert len(rows) == len(set(rows))
    assert set(rows) == ours | (set(CLASSICS) & timm)


def test_a_row_tells_what_its_entry_says():
    [row] = [line for line in page("en").splitlines() if line.startswith("| `resnet50` ")]
    assert "| 25,610,152 | 224 x 224 rgb |" in row
    assert "81.2 (timm a1_in1k, 288 px)" in row
    assert "(https://arxiv.org/abs/1512.03385)" in row
    assert models.entry("resnet50").note in row


def test_written_where_the_documentation_is(tmp_path):
    with pytest.raises(SigakError, match="there is no folder"):
        write(tmp_path)
    (tmp_path / "ko").mkdir()
    files = write(tmp_path)
    assert [f.relative_to(tmp_path).as_posix() for f in files] == ["models.md", "ko/models.md"]
    assert "# 모든 신경망" in files[1].read_text(encoding="utf-8")

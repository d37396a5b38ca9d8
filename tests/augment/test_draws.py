import numpy as np
import pytest

from sigak.augment import Draws
from sigak.structures import SigakError

MANY = np.arange(20_000)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return abs(float(np.corrcoef(first, second)[0, 1]))


def test_a_value_depends_on_its_own_sample_only() -> None:
    alone = Draws(3, 1, np.array([17])).uniform("angle")
    among = Draws(3, 1, np.array([5, 17, 99])).uniform("angle")
    assert alone[0] == among[1]
    assert Draws(3, 1, np.array([17])).uniform("angle") == alone


def test_values_are_pinned() -> None:
    """A run started today resumes exactly tomorrow: these numbers may never change."""
    draws = Draws(0, 0, np.array([0, 1, -1]))
    expected = [4981550434255517303, 5527652574586435357, 4058469955138853573]
    assert draws.bits("angle").tolist() == expected
    assert Draws(-1, 2**70, np.array([0])).uniform("angle").shape == (1,)


def test_uniform_moments_and_range() -> None:
    values = Draws(0, 0, MANY).uniform("a", -2.0, 4.0)
    assert values.min() >= -2
    assert values.max() < 4
    assert values.mean() == pytest.approx(1.0, abs=0.05)
    assert values.var() == pytest.approx(3.0, rel=0.03)
    counts = np.histogram(values, 20, (-2, 4))[0]
    chi_square = ((counts - 1000.0) ** 2 / 1000).sum()
    assert chi_square < 50  # 19 degrees of freedom: exceeded once in 7,000 good generators


def test_slots_samples_epochs_and_seeds_are_independent() -> None:
    here = Draws(0, 0, MANY)
    value = here.uniform("a")
    others = [
        here.uniform("b"),
        here.uniform("a", lane=1),
        Draws(0, 1, MANY).uniform("a"),
        Draws(1, 0, MANY).uniform("a"),
        np.roll(value, 1),
    ]
    for other in others:
        assert correlation(value, other) < 0.03
    # Seed s of epoch e + 1 must not be seed s + 1 of epoch e, nor must samples take an epoch's
    # place.
    assert not np.intersect1d(Draws(0, 1, MANY).bits("a"), Draws(1, 0, MANY).bits("a")).size
    assert len(np.unique(here.bits("a"))) == len(MANY)


def test_normal_moments() -> None:
    values = Draws(0, 0, MANY).normal("n", 3.0, 2.0)
    standard = (values - 3) / 2
    assert standard.mean() == pytest.approx(0, abs=0.03)
    assert standard.var() == pytest.approx(1, abs=0.04)
    assert (standard**3).mean() == pytest.approx(0, abs=0.1)
    assert (standard**4).mean() == pytest.approx(3, abs=0.2)


def test_integers_choice_and_chance() -> None:
    draws = Draws(0, 0, MANY)
    values = draws.integers("i", -2, 3)
    assert values.dtype == np.int64
    assert set(values.tolist()) == {-2, -1, 0, 1, 2}
    assert np.bincount(values + 2).min() > 3700
    assert set(draws.choice("c", ["x", "y"]).tolist()) == {"x", "y"}
    assert draws.chance("p", 0.25).mean() == pytest.approx(0.25, abs=0.02)
    with pytest.raises(SigakError, match="high above low"):
        draws.integers("i", 2, 2)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 3.0, 100.0])
def test_beta_moments(alpha: float) -> None:
    values = Draws(0, 0, MANY).beta("b", alpha)
    variance = 1 / (4 * (2 * alpha + 1))
    kurtosis = 3 - 6 / (2 * alpha + 3)
    assert ((values >= 0) & (values <= 1)).all()
    assert values.mean() == pytest.approx(0.5, abs=0.02)
    assert values.var() == pytest.approx(variance, rel=0.05)
    assert ((values - 0.5) ** 4).mean() / variance**2 == pytest.approx(kurtosis, rel=0.12)


def test_indices_must_be_one_row() -> None:
    with pytest.raises(SigakError, match="one row"):
        Draws(0, 0, np.zeros((2, 2), np.int64))

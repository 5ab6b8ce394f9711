"""The hedge experiment of the documentation, on fewer paths; and that its page shows what its figure shows."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "transfer-constrained-margin.md"
FIGURE = DOCS / "examples" / "hedge_experiment.svg"

PATHS = 4096

# At the page's 16,384 paths four seeds spread from 26.1 to 29.0 % and from 6.1 to 7.5 %. A quarter of the paths doubles
# the noise; the bands are the spread widened by twice its width on either side, and twelve hours stay in single digits.
FIRST_HOUR = (0.20, 0.35)
TWELVE_HOURS = (0.033, 0.10)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hedge_experiment", DOCS / "examples" / "hedge_experiment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_both_legs_mirror_each_other_and_returns_have_the_stated_spread(example: ModuleType) -> None:
    losses = example.cumulative_losses(PATHS, 0.0, 0.06)
    assert losses.shape == (PATHS, 24, 2)
    np.testing.assert_array_equal(losses[..., 0], -losses[..., 1])
    hourly = np.diff(np.log1p(losses[..., 1] / 10e6), axis=1, prepend=0.0)
    # t with 4 degrees of freedom has no fourth moment: the spread of 98,304 draws is known to a few per cent.
    assert hourly.std() == pytest.approx(0.0055, rel=0.05)
    jumps = example.cumulative_losses(PATHS, 0.001, 0.06)
    moved = (jumps != losses).any(axis=(1, 2)).mean()
    expected = 1.0 - 0.999**24
    assert moved == pytest.approx(expected, abs=4.0 * np.sqrt(expected / PATHS))


def test_the_saving_falls_with_the_route_time(example: ModuleType) -> None:
    found = example.experiment(paths=PATHS)
    hours = [of for of, _ in found.funded]
    totals = [funded.total for _, funded in found.funded]
    assert hours == [1, 2, 4, 8, 12, None]
    assert found.pooled == 0.0
    assert totals == sorted(totals)
    assert totals[0] > found.pooled
    assert all(funded.probability <= 0.01 for _, funded in found.funded)
    savings = [found.saving(funded) for _, funded in found.funded]
    assert FIRST_HOUR[0] < savings[0] < FIRST_HOUR[1]
    assert TWELVE_HOURS[0] < savings[4] < TWELVE_HOURS[1]
    assert savings[5] == 0.0
    # Without a route a leg is lost where its worst loss on the way is above what it holds: known without the policy.
    worst = example.cumulative_losses(PATHS, example.JUMPS_PER_HOUR, example.JUMP_STD).max(axis=(1, 2))
    assert totals[5] / 2.0 == pytest.approx(np.sort(worst)[PATHS - int(0.01 * PATHS) - 1], rel=2e-4)
    names = {text.text for text in ElementTree.fromstring(example.plot(found)).iter() if text.text}
    assert {f"{total / 1e6:.2f}" for total in totals} <= names


def test_the_page_shows_the_figures_of_its_plot(example: ModuleType) -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+ h|never) \| (\d\.\d\d) \| (\d+\.\d) % \|", page, re.MULTILINE)
    assert [row[0] for row in rows] == ["1 h", "2 h", "4 h", "8 h", "12 h", "never"]
    shown = [text.text for text in ElementTree.parse(FIGURE).iter("{http://www.w3.org/2000/svg}text")]
    for name, total, saving in rows:
        assert name in shown
        assert total in shown
        assert name == "never" or f"−{saving}%" in shown
    assert "standard deviation 6 %" in page
    assert (example.JUMP_STD, example.JUMPS_PER_HOUR, example.PATHS) == (0.06, 0.001, 16_384)

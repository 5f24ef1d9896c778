"""Every story in tests/scenarios ends as it says it must, and breaks no rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from hactl.sim.scenario import load
from hactl.sim.simulate import simulate

FILES = sorted((Path(__file__).parents[1] / "scenarios").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_scenario(file: Path) -> None:
    scenario = load(file)
    assert scenario.about
    assert simulate(scenario).disappointments == ()

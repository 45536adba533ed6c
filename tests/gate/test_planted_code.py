"""Faults in the code that makes or measures images, which the analytic gate has to stop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fairbench.backbones.mixture import GaussianMixture
from fairbench.gate.baseline import Baseline, read_baseline, write
from fairbench.gate.checking import check
from fairbench.instruments.analytic import Judge

ANALYTIC = Path(__file__).parents[1] / "baselines" / "analytic.json"
NETWORK, JUDGED = GaussianMixture._network, Judge.__call__


def wrong_sign(self, x_t, t, context):
    return -NETWORK(self, x_t, t, context)


def wrong_timestep(self, x_t, t, context):
    return NETWORK(self, x_t, (t + 60).clamp(max=len(self.schedule) - 1), context)


def prompts_ignored(self, x_t, t, context):
    return NETWORK(self, x_t, t, None if context is None else torch.zeros_like(context))


def worse_weights(self, x_t, t, context):
    learned, self.std = self.std, 0.75 * self.std
    try:
        return NETWORK(self, x_t, t, context)
    finally:
        self.std = learned


def group_dropped(self, x_t, t, context):
    """The last hue is never made."""
    if context is not None:
        context = context.clone()
        context[:, :, 2::3] = -30.0
    return NETWORK(self, x_t, t, context)


def biased_judge(self, images):
    said = JUDGED(self, images)
    dark = np.flatnonzero(said["tone"].argmax(1) == 0)[::8]
    said["tone"][dark] = said["tone"][dark][:, ::-1]
    return said


FAULTS = [
    (GaussianMixture, "_network", wrong_sign),
    (GaussianMixture, "_network", wrong_timestep),
    (GaussianMixture, "_network", prompts_ignored),
    (GaussianMixture, "_network", worse_weights),
    (GaussianMixture, "_network", group_dropped),
    (Judge, "__call__", biased_judge),
]


@pytest.fixture
def one_run(tmp_path):
    """A baseline of the run in which prompts and groups play the largest part."""
    whole = read_baseline(ANALYTIC)
    (chosen,) = [one for one in whole.runs if one.question["method"] == "prompt_append"]
    write(tmp_path / "one.json", Baseline((chosen,)))
    return tmp_path / "one.json"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "name", "fault"), FAULTS, ids=lambda one: getattr(one, "__name__", one)
)
def test_the_gate_stops_it(one_run, monkeypatch, place, name, fault):
    monkeypatch.setattr(place, name, fault)
    found = check(one_run)
    assert found.exit_code == 1
    assert found.verdict.of("regressed")

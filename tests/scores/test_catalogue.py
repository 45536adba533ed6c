from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from fairbench.core.errors import InputError
from fairbench.core.score import ScoreSpec
from fairbench.scores import catalogue
from fairbench.scores.catalogue import broken_families, families, metrics, spec_of, specs
from fairbench.scores.parts.family import Found, ScoreFamily

FOLDER = Path(catalogue.__file__).parent


@pytest.fixture
def fresh():
    """Families are looked for anew, now and afterwards."""

    def clear():
        catalogue._entries.cache_clear()
        spec_of.cache_clear()

    clear()
    yield
    clear()


def test_families_have_an_order_and_a_name_each():
    assert len({family.name for family in families()}) == len(families())
    orders = [family.order for family in families()]
    assert orders == sorted(set(orders))
    assert not broken_families()
    assert len(metrics()) == len(specs())


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("fairness_discrepancy", "fairness_discrepancy"),
        ("fairness_discrepancy_l1", "fairness_discrepancy_l1"),
        ("fairness_discrepancy_gender_race", "fairness_discrepancy_*"),
        ("fairness_discrepancy_corrected_gender", "fairness_discrepancy_corrected_*"),
        ("coverage_at_10", "coverage_at_*"),
        ("coverage_enc", "coverage_*"),
        ("recall_enc", "recall_*"),
        ("recall_enc_worst_group", "recall_*_worst_group"),
        ("frechet_enc_infinity_balanced", "frechet_*_infinity_balanced"),
        ("kid_tf_balanced", "kid*_balanced"),
    ],
)
def test_the_most_specific_pattern_wins(name, pattern):
    assert spec_of(name).pattern == pattern


def test_a_name_that_no_family_makes_has_no_spec():
    assert spec_of("entropy_of_everything") is None


@pytest.mark.parametrize("kind", ["kernel_enc", "kid", "kid_tf"])
@pytest.mark.parametrize(
    "column", ["balanced", "natural", "reweighted", "worst_group", "group_gap"]
)
def test_kernel_distances_are_shown_in_thousandths(kind, column):
    assert spec_of(f"{kind}_{column}").scale == 1000
    assert spec_of("validity").scale == 1


def test_main_columns_keep_their_places():
    placed = {spec.main: spec.pattern for spec in specs() if spec.main is not None}
    assert sorted(placed) == list(range(8))
    assert placed[0] == "fairness_discrepancy_corrected"


def test_another_package_adds_a_family(monkeypatch, fresh):
    spec = ScoreSpec("novelty", "how new images are", "higher")
    mine = ScoreFamily("novelty", 500, (spec,), lambda evidence: Found())

    class Point:
        def __init__(self, name, loaded):
            self.name, self.value, self.loaded = name, f"other.{name}", loaded

        def load(self):
            if self.loaded is None:
                raise ImportError("no module named other")
            return self.loaded

    points = {"fairbench.scores": [Point("novelty", mine), Point("broken", None)]}
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points.get(group, []))
    assert families()[-1] is mine
    assert spec_of("novelty") is spec
    assert metrics()["novelty"] == "how new images are"
    assert "no module named other" in broken_families()["broken"]
    with pytest.raises(InputError, match="broken"):
        catalogue.Registry("score family", "fairbench.scores", "FAMILY").load("broken")


def test_no_family_imports_a_network():
    code = "import sys; from fairbench.scores import catalogue; catalogue.metrics()"
    code += "; print({'torch', 'pandas', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_faces_are_the_business_of_one_family():
    for path in FOLDER.rglob("*.py"):
        if path.name not in ("faces.py", "evidence.py", "scoring.py"):
            assert "face" not in path.read_text().lower().split(), path

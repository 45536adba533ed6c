"""Instruments are found by name, those of other packages too, and the documented one runs."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path
from types import MappingProxyType, ModuleType

import numpy as np
import pytest

from fairbench.core.errors import ContractError, InputError
from fairbench.core.specs import InstrumentNames, InstrumentSpec
from fairbench.datasets.cartoonfaces import DATASET
from fairbench.instruments.base import AlignsTexts
from fairbench.instruments.catalogue import instrument_spec, instrument_specs, load_instrument
from fairbench.instruments.measuring import Instruments, load_instruments, measure

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_judge.md"
OWN = "cartoonfaces/primary", "cartoonfaces/second", "cartoonfaces/encoder"


def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def package(monkeypatch):
    """Another package's module of instruments, by entry point; any of its names can be set."""
    module = ModuleType("other_package")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    point = metadata.EntryPoint("other", module.__name__, "fairbench.instruments")
    monkeypatch.setattr(
        "importlib.metadata.entry_points",
        lambda *, group: [point] if group == point.group else [],
    )
    return module


@pytest.fixture
def shapes(package):
    exec(blocks()[0], package.__dict__)
    return package


def drawings(n, height, width):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def silent(what, done, total):
    pass


def test_shipped_instruments_are_found_by_name():
    specs = instrument_specs()
    assert {*OWN, "cartoonfaces/validity", "mtcnn", "facenet-vggface2", "clip-vit-b-32"} <= {
        *specs
    }
    for name, spec in specs.items():
        assert spec.name == name
        assert spec.title
        assert "\n" not in spec.title
    loaded = [load_instrument(name) for name in OWN]
    assert [one.name for one in loaded] == ["primary", "second", "cartoonfaces"]
    assert [one.kind for one in loaded] == ["judge", "judge", "encoder"]


def test_names_of_another_kind_are_not_known():
    with pytest.raises(InputError, match="unknown judge 'clip-vit-b-32'"):
        instrument_spec("clip-vit-b-32", "judge")
    with pytest.raises(InputError, match="unknown encoder 'cartoonfaces/primary'"):
        load_instruments("cpu", DATASET.instruments(), ["cartoonfaces/primary"])


def test_the_documented_judge_measures_a_data_set_of_one_judge(shapes, tmp_path):
    names = InstrumentNames(("shapes/colours",))
    instruments = load_instruments("cpu", names)
    assert instruments.hashes().keys() == instruments.readings().keys() == {"judge_colours"}
    images = drawings(70, 40, 64)
    measured = measure(images, instruments, tmp_path, silent, ["a disc"] * 70)
    assert {k: v.shape for k, v in measured.probabilities["colours"].items()} == {
        "colour": (70, 2),
        "shape": (70, 3),
    }
    assert measured.features == measured.alignment == {}
    assert measured.valid.all()
    assert not measured.validity_checked
    (judge,) = instruments.judges
    alone = judge(images[69:])["shape"]
    np.testing.assert_array_equal(alone, measured.probabilities["colours"]["shape"][69:])
    with pytest.raises(ContractError, match="an encoder of the data set's own"):
        _ = instruments.encoder


def test_every_documented_block_runs(capsys):
    names = {}
    for block in blocks():
        exec(block, names)
    assert "(5, 3)" in capsys.readouterr().out


def test_a_data_set_may_use_a_public_encoder_once(monkeypatch, tmp_path):
    """Asked for beside, it isn't loaded twice."""
    names = InstrumentNames(OWN[:1], OWN[2:], "cartoonfaces/validity")
    instruments = load_instruments("cpu", names, ["cartoonfaces/encoder"])
    assert [one.name for one in instruments.all_encoders] == ["cartoonfaces"]
    assert [*instruments.hashes()] == ["judge_primary", "encoder_cartoonfaces", "validity"]


def test_results_of_two_instruments_can_not_get_mixed_up():
    judge = load_instrument(OWN[0])
    with pytest.raises(ContractError, match="judges of different names, seen primary, primary"):
        Instruments((judge, judge))
    with pytest.raises(ContractError, match="one judge or more, seen none"):
        Instruments(())


def test_texts_are_aligned_by_whatever_reads_them(tmp_path):
    class Aligning:
        name = weights_sha256 = preprocessing = "letters"
        kind, dtype, dimension = "encoder", "float32", 1
        outputs = MappingProxyType({"features": np.float32})

        def __call__(self, images):
            return {"features": images[:, 0, 0, :1].astype(np.float32)}

        def alignment(self, features, prompts):
            return np.array([row[0] + len(p) for row, p in zip(features, prompts, strict=True)])

    plain = load_instrument(OWN[2])
    assert not isinstance(plain, AlignsTexts)
    instruments = Instruments((load_instrument(OWN[0]),), (plain,), None, (Aligning(),))
    images = drawings(2, 32, 32)
    measured = measure(images, instruments, tmp_path, silent, ["a", "bb"])
    assert measured.alignment["letters"].tolist() == [
        images[0, 0, 0, 0] + 1,
        images[1, 0, 0, 0] + 2,
    ]
    assert measure(images, instruments, tmp_path, silent).alignment == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("INSTRUMENTS = 3", "expected a tuple of InstrumentSpec, seen int"),
        ("INSTRUMENTS = [1]", "expected a tuple of InstrumentSpec, seen list"),
        (
            "from fairbench.core.specs import InstrumentSpec\n"
            "INSTRUMENTS = (InstrumentSpec('mtcnn', 'judge', 'x', print),)",
            "mtcnn is there already",
        ),
    ],
)
def test_a_package_that_can_not_be_used_takes_nothing_down(package, content, message):
    exec(content, package.__dict__)
    assert instrument_spec("mtcnn").kind == "faces"
    with pytest.raises(InputError, match="unknown instrument 'shapes'") as caught:
        instrument_spec("shapes")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_instrument_must_be_of_the_kind_that_its_spec_says(package):
    package.INSTRUMENTS = (InstrumentSpec("odd", "judge", "x", lambda **options: object()),)
    with pytest.raises(ContractError, match="odd: expected one of kind judge, seen object"):
        load_instrument("odd")

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest

from fairbench.core.measurements import Measurements
from fairbench.core.task import Prompt, Task
from fairbench.datasets import cartoonfaces
from fairbench.datasets.base import ArrayImages
from fairbench.datasets.cartoonfaces import DATASET as CARTOONFACES
from fairbench.datasets.cartoonfaces import DEFAULT_BIAS, load_split, training_split
from fairbench.instruments import faces
from fairbench.instruments.faces import Faces, Identities
from fairbench.instruments.measuring import Instruments
from fairbench.runs.face_reading import face_reading, read_faces
from fairbench.scores.catalogue import spec_of
from fairbench.scores.faces import FAMILY, score_faces
from fairbench.scores.parts.crossings import Reading, Sample
from fairbench.scores.parts.evidence import Evidence, Reference
from fairbench.storage.readings import ImageList

LEVELS = {"gender": ("f", "m")}
RNG = np.random.default_rng(0)


def pictures(n):
    """Images each of another "person": what is in them is the identity."""
    return RNG.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)


def source(images):
    return ArrayImages(images, {})


class Detector:
    weights_sha256, preprocessing, dtype = "d" * 64, "none", "float32"


class Network:
    weights_sha256, preprocessing, dtype = "e" * 64, "none", "float32"


class Judge:
    name, confusion = "one", {}
    weights_sha256, preprocessing, dtype = "f" * 64, "none", "float32"


def instruments_of(network=True):
    missing = "" if network else "no weights"
    return Instruments(
        (Judge(),),
        detector=Detector(),
        identity=Network() if network else None,
        no_identity=missing,
    )


def face_scores(images, reading, real, cells, sensitive, training, network=True):
    real, training = source(real), None if training is None else source(training)
    found = read_faces(source(images), real, training, instruments_of(network), None, None)
    return score_faces(found, reading, sensitive, cells)


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """A face in every image but blank ones, known by its pixels."""

    def detect(images, detector, cache, progress, listed=None):
        assert listed is None or listed == ImageList.of(images)
        sure = images.reshape(len(images), -1).any(axis=1).astype(np.float32)
        return Faces(
            sure,
            np.repeat(sure[:, None], 3, axis=1).astype(np.int64),
            np.zeros((len(images), 4), np.float32),
            sure,
            np.zeros(len(images), bool),
        )

    def embed(images, found, network, cache, progress):
        (index,) = found.valid().nonzero()
        rows = images[index].reshape(len(index), 48).astype(np.float32) - 127.5
        return Identities(index, rows / np.linalg.norm(rows, axis=1, keepdims=True))

    monkeypatch.setattr(faces, "detect_faces", detect)
    monkeypatch.setattr(faces, "identities", embed)


def scored(images, groups, training, network=True, real=400):
    probabilities = {"gender": np.eye(2, dtype=np.float32)[groups]}
    n = len(images)
    measured = Measurements({}, {"one": probabilities}, np.ones(n, dtype=bool))
    sample = Sample(measured, np.zeros(n, np.int64), None, np.arange(n))
    task = Task("gender", LEVELS, (Prompt("person", template="a photo of {}"),), (0.5, 0.5))
    scores, facts = face_scores(
        images,
        Reading(sample, "one", LEVELS, task),
        pictures(real),
        np.arange(real) % 2,
        ("gender",),
        training,
        network,
    )
    for score in scores:
        spec = spec_of(score.name)
        assert (spec.better, spec.unit) == (score.better, score.unit)
        assert score.low <= score.value <= score.high
    return {score.name: score for score in scores}, facts


def test_new_faces_are_not_called_copies():
    scores, facts = scored(pictures(200), np.arange(200) % 2, pictures(500))
    found = scores["identity_memorisation"]
    assert found.low < 0.5 < found.high
    assert found.n == 200
    assert scores["identity_memorisation_ratio"].value == pytest.approx(1, abs=0.1)
    assert scores["identity_copies"].value < 0.02
    assert facts["memorisation"]["training_faces"] == 500
    assert "not_measured" not in facts


def test_copies_of_one_group_are_found_in_that_group():
    training = pictures(500)
    made = pictures(200)
    made[1::4] = training[:50]  # half of the men
    scores, facts = scored(made, np.arange(200) % 2, training)
    assert scores["identity_copies"].value == 0.25
    assert scores["identity_memorisation"].low > 0.5
    worst = scores["identity_memorisation_worst_group"]
    assert "; m; " in worst.source
    assert worst.source.endswith("of the worst if all were equal")
    assert worst.n == 100
    assert worst.value > scores["identity_memorisation"].value
    women, men = facts["memorisation"]["by_group"]
    assert (men["group"], men["copies"], women["copies"]) == ("m", 0.5, 0)
    assert women["auc"] < men["auc"]
    assert men["real_copies"] < 0.02


def test_without_the_training_images_it_is_said_not_to_be_measured():
    scores, facts = scored(pictures(100), np.arange(100) % 2, None)
    assert not any("memorisation" in name or "copies" in name for name in scores)
    assert "aren't known" in facts["not_measured"]["identity_memorisation"]
    assert "memorisation" not in facts
    _, facts = scored(pictures(100), np.arange(100) % 2, None, network=False)
    assert facts["not_measured"].keys() == {"identity", "identity_memorisation"}


def test_a_group_with_few_faces_has_no_worst_and_is_named():
    scores, facts = scored(pictures(100), (np.arange(100) < 5).astype(int), pictures(300))
    assert "identity_memorisation" in scores
    assert "identity_memorisation_worst_group" not in scores
    told = facts["not_measured"]["identity_memorisation_worst_group"]
    assert told == "m has 5 generated and 200 real faces; 10 needed"


@pytest.mark.parametrize("case", ["no faces in training", "no real face of a group"])
def test_what_cannot_be_compared_is_not(case):
    training, real = pictures(100), 400
    if case.startswith("no faces"):
        training[:] = 0
    groups = np.arange(100) % 2
    n = len(groups)
    measured = Measurements({}, {"one": {"gender": np.eye(2)[groups]}}, np.ones(n, dtype=bool))
    sample = Sample(measured, np.zeros(n, np.int64), None, np.arange(n))
    task = Task("gender", LEVELS, (Prompt("person", template="a photo of {}"),), (0.5, 0.5))
    reading = Reading(sample, "one", LEVELS, task)
    cells = np.zeros(real, int) if case.startswith("no real") else np.arange(real) % 2
    scores, facts = face_scores(pictures(n), reading, pictures(real), cells, ("gender",), training)
    reason = facts["not_measured"]["identity_memorisation"]
    expected = "no real face of m" if case.startswith("no real") else "0 faces in the training"
    assert reason.startswith(expected)
    assert not any("memorisation" in score.name for score in scores)


def test_the_shipped_backbones_say_what_they_were_trained_on(tmp_path):
    split = training_split()
    assert len(split) == 8000
    shares = np.bincount(cartoonfaces.cell_index(split.labels)) / 8000
    np.testing.assert_allclose(shares, DEFAULT_BIAS.shares.ravel(), atol=1e-4)
    real = {image.tobytes() for image in load_split("evaluation").images}
    assert not any(image.tobytes() in real for image in split.images)
    for spec in CARTOONFACES.backbones:
        trained = CARTOONFACES.trained_on(spec)
        np.testing.assert_array_equal(trained.images, split.images)
    elsewhere = replace(CARTOONFACES.backbones[0], folder=tmp_path)
    assert CARTOONFACES.trained_on(elsewhere) is None


def test_the_family_scores_what_was_read_without_a_network():
    groups, made, real, training = np.arange(200) % 2, pictures(200), pictures(400), pictures(100)
    probabilities = {"gender": np.eye(2, dtype=np.float32)[groups]}
    measured = Measurements({}, {"one": probabilities}, np.ones(200, dtype=bool))
    sample = Sample(measured, np.zeros(200, np.int64), None, np.arange(200))
    task = Task("gender", LEVELS, (Prompt("person", template="a photo of {}"),), (0.5, 0.5))
    reading = Reading(sample, "one", LEVELS, task)
    instruments, cells = instruments_of(), np.arange(400) % 2
    reference = Reference({}, {"gender": cells}, np.zeros(400, np.int64), None)
    found = read_faces(source(made), source(real), source(training), instruments, None, None)
    evidence = Evidence((reading,), ("gender",), {}, {}, reference, faces=found)
    expected, facts = face_scores(made, reading, real, cells, ("gender",), training)
    family = FAMILY.compute(evidence)
    assert list(family.scores) == expected
    assert family.facts == {"faces": facts}
    assert FAMILY.compute(dataclasses.replace(evidence, faces=None)).scores == ()
    unknown = read_faces(source(made), source(real), None, instruments, None, None)
    missing = FAMILY.compute(dataclasses.replace(evidence, faces=unknown)).not_measured
    assert missing.keys() == {"identity_memorisation"}


def test_another_way_of_scoring_faces_is_another_question(monkeypatch):
    before = face_reading(instruments_of(network=False))
    assert face_reading(instruments_of()) != before
    monkeypatch.setattr("fairbench.scores.faces.SCORES", 99)
    assert face_reading(instruments_of(network=False)) != before


def test_without_a_detector_nothing_is_read():
    images = pictures(2)
    bare = Instruments((Judge(),))
    assert read_faces(source(images), source(images), None, bare, None, None) is None
    assert face_reading(bare) == {}
    assert not {"face_detector", "face_identity"} & bare.hashes().keys()
    assert {"face_detector", "face_identity"} <= instruments_of().hashes().keys()

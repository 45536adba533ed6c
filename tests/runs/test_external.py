import csv
import dataclasses

import numpy as np
import pytest

from fairbench.core.errors import AssetError, InputError
from fairbench.core.progress import Reporter
from fairbench.datasets import cartoonfaces
from fairbench.datasets.cartoonfaces import DATASET as CARTOONFACES
from fairbench.runs.config import RunConfig
from fairbench.runs.external import evaluate

N = 200
LEVELS = cartoonfaces.ATTRIBUTES


@pytest.fixture(scope="session")
def read_before(tmp_path_factory):
    """Readings that all tests share, so that the real images are read once."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, read_before):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "features").symlink_to(read_before)
    monkeypatch.setenv("FAIRBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "no-weights").mkdir()
    for variable in ("FAIRBENCH_WEIGHTS", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "no-weights"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def part():
    """Real images, biased as the training set; all are of one of five roles."""
    pool = cartoonfaces.load_split("pool")
    return pool.take(cartoonfaces.DEFAULT_BIAS.draw(pool.labels, N, 1))


@pytest.fixture
def images(part, folder):
    np.savez(folder / "images.npz", part.images)
    return folder / "images.npz"


@pytest.fixture
def write_labels(part, folder):
    def write(name="labels.csv", **columns):
        made = {"file": [str(i) for i in range(N)], **columns}
        with (folder / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(made)
            writer.writerows(zip(*made.values(), strict=True))
        return folder / name

    return write


def levels(part, name):
    return [LEVELS[name][i] for i in part.labels[name]]


def prompts(part):
    texts = {prompt.subject: prompt.text for prompt in CARTOONFACES.subjects}
    return [texts[role] for role in levels(part, "role")]


def measured(images, **options):
    defaults = {"dataset": "cartoonfaces", "task": "gender", "name": "there"}
    return evaluate(images, **{**defaults, **options}).record


def test_labels_make_a_mean_over_prompts_possible(images, part, write_labels):
    with pytest.raises(InputError, match="--labels with a column prompt"):
        measured(images, task="gender_by_role")
    record = measured(images, task="gender_by_role", labels=write_labels(prompt=prompts(part)))
    by_prompt = record.facts["fairness"]["by_prompt"]
    male = part.labels["gender"][part.labels["role"] == LEVELS["role"].index("tennis player")]
    assert by_prompt["tennis player"]["value"] == pytest.approx(
        np.sqrt(2) * abs(male.mean() - 0.5), abs=0.03
    )
    assert record.score("prompt_dependence").value > 0.1


def test_labels_check_the_judge_and_say_what_was_asked_for(images, part, write_labels):
    labels = write_labels(
        requested_gender=["female"] * N, gender=levels(part, "gender"), race=levels(part, "race")
    )
    record = measured(images, labels=labels)
    assert record.score("judge_agreement_gender").value > 0.98
    assert record.score("judge_agreement_race").value > 0.98
    given = record.score("fairness_discrepancy_given").value
    assert given == pytest.approx(np.sqrt(2) * abs(part.labels["gender"].mean() - 0.5))
    matrix = np.array(record.facts["hit_matrix"]["counts"])
    assert matrix[1].sum() == 0
    assert record.score("hit_rate").value == pytest.approx(
        1 - part.labels["gender"].mean(), abs=0.02
    )
    plain = measured(images)
    assert plain.key != record.key
    assert plain.score("fairness_discrepancy") == record.score("fairness_discrepancy")


@pytest.mark.parametrize(
    ("columns", "task", "told"),
    [
        ({"prompt": ["a photo of a persom"] * N}, "gender_by_role", "a photo of a person"),
        ({"prompt": ["a photo of a person"] * N}, "gender_by_role", "seen none of"),
        ({}, "gender_by_role", "needs a column prompt"),
        ({"requested_gender": ["male"] * N}, "gender_race", "need requested_race too"),
        ({"gender": ["man"] * N}, "gender", "man"),
    ],
)
def test_wrong_labels_are_one_clear_line(images, write_labels, columns, task, told):
    with pytest.raises(InputError, match=told) as error:
        measured(images, task=task, labels=write_labels(**columns))
    assert "\n" not in str(error.value)
    assert "labels.csv" in str(error.value)


def test_the_seed_moves_intervals_and_makes_another_record(images):
    one, two = measured(images), measured(images, seed=3)
    assert one.key != two.key
    a, b = (r.score("fairness_discrepancy_gender_race") for r in (one, two))
    assert a.value == b.value
    assert a.low != b.low
    for option in ({"seed": -1}, {"batch_size": 0}):
        with pytest.raises(InputError, match="must"):
            measured(images, **option)


def test_a_row_may_name_the_baseline_that_it_is_admitted_by(images, folder):
    before = measured(images, name="raw")
    assert before.card["ranked"] is False
    path = folder / "results" / "cartoonfaces" / "raw" / f"{before.key}.json"
    after = measured(images, name="debiased", baseline=path)
    assert after.card["ranked"] is True
    told = after.facts["baseline"]
    assert (told["key"], told["method"]) == (before.key, "raw")
    assert told["scores"]["validity"]["value"] == before.score("validity").value
    assert any(name.endswith("_reweighted") for name in told["scores"])
    counts = after.facts["estimate"]["judges"]
    assert np.sum(counts["primary"]["gender"]["counts"]) == after.score("fairness_discrepancy").n
    assert set(counts) == {"primary", "second"}
    assert after.facts["estimate"]["real_distance"] > 0
    other = folder / "other.json"
    other.write_text(path.read_text().replace(before.config["hashes"]["reference"], "f" * 64))
    with pytest.raises(InputError, match="measured with another reference"):
        measured(images, name="third", baseline=other)


def test_groups_are_compared_within_levels_of_a_control_variable(images, part, write_labels):
    plain = measured(images)
    record = measured(images, controls=["role"])
    assert record.key != plain.key
    assert record.scores == plain.scores
    for name, rows in plain.groups.items():
        assert record.groups[name] == rows
    roles = LEVELS["role"]
    strata = record.facts["control"]["role"]
    assert [row["level"] for row in strata] == list(roles)
    assert sum(row["n"] for row in strata) == record.score("validity").value * N
    # Biased as the pool: men play baseball, women tennis.
    shares = {role: record.groups[f"gender|role={role}"][1]["share"] for role in roles}
    assert shares["baseball player"] > 0.7 > 0.3 > shares["tennis player"]
    row = strata[roles.index("baseball player")]
    found = row["discrepancy"]["gender"]
    expected = np.sqrt(2) * abs(shares["baseball player"] - 0.5)
    assert found["value"] == pytest.approx(expected)
    assert found["low"] < found["value"] < found["high"]
    assert 0 < found["floor"] < 0.4
    assert 0 <= row["representation"]["min_over_max"] < 1
    given = write_labels(control_seed=[str(i % 3) for i in range(N)])
    record = measured(images, labels=given, controls=["race"])
    assert record.facts["control"].keys() == {"race", "seed"}
    assert {"gender|race=asian", "gender|seed=2", "gender/race|seed=2"} <= record.groups.keys()
    assert "race|race=asian" not in record.groups
    assert sum(row["n"] for row in record.groups["gender|seed=2"][:1]) < N / 2
    with pytest.raises(InputError, match="did you mean role"):
        measured(images, controls=["rule"])


def test_missing_weights_are_said_before_anything_is_measured(images):
    with pytest.raises(AssetError, match="weights-inception-2015-12-05"):
        measured(images, encoders=["inception@clean"])
    with pytest.raises(InputError, match="inception@clean"):
        measured(images, encoders=["inception"])


def test_faces_are_found_and_identities_say_what_is_missing(images, monkeypatch):
    monkeypatch.setattr("fairbench.scores.faces.SUBSAMPLE", 20)
    notes = []
    few = cartoonfaces.load_split("evaluation").take(np.arange(20))
    monkeypatch.setattr(
        "fairbench.runs.evaluation.real_images", lambda *asked: (few, np.zeros(20, int))
    )
    record = measured(images, faces=True, reporter=Reporter(note=notes.append))
    found = record.score("face_validity")
    assert found.n == 20
    assert 0.3 < found.value < 1  # a detector for photographs, shown cartoons
    assert record.facts["faces"]["validity_at"]["0.7"] >= found.value
    assert any("20180402-114759-vggface2.pt" in note for note in notes)
    told = "identity_memorisation: not measured: the images that the generator was"
    assert any(note.startswith(told) for note in notes)
    assert record.config["hashes"].keys() >= {"face_detector"}


def test_a_run_takes_encoders_and_faces_into_its_question():
    plain = RunConfig("vanilla")
    assert dataclasses.replace(plain, encoders=("inception@clean",), faces=True) != plain

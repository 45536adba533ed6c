"""Judges of other people's networks: classes to levels, counted errors, weight files."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fairbench.core.errors import AssetError, InputError
from fairbench.core.specs import InstrumentNames
from fairbench.instruments import age_gender, fairface, zero_shot
from fairbench.instruments.age_gender import AgeGender
from fairbench.instruments.calibration import balanced_accuracy, calibrated, halves, held_out_facts
from fairbench.instruments.catalogue import instrument_specs, load_instrument
from fairbench.instruments.class_readers import Classes, Cut, DatasetJudge, FaceCrops, best_cut
from fairbench.instruments.efficientnet import EfficientNetEncoder, EfficientNetLite0
from fairbench.instruments.fairface import FairFace, load_fairface
from fairbench.instruments.judges import judge_names, load_judge
from fairbench.instruments.zero_shot import attribute_sentences, zero_shot_probabilities

_spec = importlib.util.spec_from_file_location("labelled", Path(__file__).with_name("labelled.py"))
labelled = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(labelled)
Labelled, Reader = labelled.Labelled, labelled.Reader

RNG = np.random.default_rng(0)


def noise(n, height, width=None):
    return RNG.integers(0, 256, (n, height, width or height, 3), dtype=np.uint8)


def line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


class NoFaces:
    """A detector that finds no face in any image."""

    preprocessing, weights_sha256 = "none", "d" * 64

    def __call__(self, images):
        return {"box": np.full((len(images), 4), np.nan, np.float32)}


class Boxes(NoFaces):
    """One that finds the same box in every image but the first."""

    def __call__(self, images):
        box = np.tile(np.float32([8, 4, 24, 20]), (len(images), 1))
        box[0] = np.nan
        return {"box": box}


# --- classes to levels ---------------------------------------------------------------------


def test_classes_become_levels_by_name():
    asian = Classes(
        ("white", "East Asian", "southeast_asian"),
        aliases={"asian": ("east_asian", "southeast_asian")},
    )
    np.testing.assert_array_equal(asian.table(("asian", "white")), [[0, 1], [1, 0], [1, 0]])
    assert asian.table(("white", "brown")) is None


def test_levels_are_in_the_data_sets_order_and_unplaced_classes_are_left_out():
    reader = SimpleNamespace(
        name="r",
        weights_sha256="a",
        dtype="float32",
        preprocessing="p",
        classes={
            "race": Classes(("white", "black", "other")),
            "gender": Classes(("male", "female")),
        },
    )
    judge = DatasetJudge(reader, {"gender": ("female", "male"), "race": ("black", "white")})
    said = judge.said(
        {
            "gender": np.float32([[0.9, 0.1]]),
            "race": np.float32([[0.3, 0.1, 0.6]]),
        }
    )
    np.testing.assert_allclose(said["gender"], [[0.1, 0.9]], rtol=1e-6)
    np.testing.assert_allclose(said["race"], [[0.25, 0.75]], rtol=1e-6)
    nothing = judge.said({"gender": np.float32([[1, 0]]), "race": np.float32([[0, 0, 1]])})
    np.testing.assert_allclose(nothing["race"], [[0.5, 0.5]])
    with pytest.raises(InputError, match="none of the data set's attributes shoe"):
        DatasetJudge(reader, {"shoe": ("flat", "high")})


@pytest.mark.parametrize("levels", [("young", "old"), ("old", "young")])
def test_the_cut_of_ages_is_found_whichever_level_comes_first(levels):
    classes = Reader.classes["age"]
    years = np.arange(80)
    truth = (years >= 47) == (levels[1] == "old")
    cut = best_cut(np.eye(81)[:80], truth.astype(int), classes, levels)
    assert cut == Cut("old", 47)
    table = cut.table(classes, levels)
    assert table[46, levels.index("young")] == table[47, levels.index("old")] == 1
    with pytest.raises(InputError, match="labelled images of both"):
        best_cut(np.eye(81)[:80], np.zeros(80, int), classes, levels)


def test_an_age_is_read_only_with_a_cut():
    judge = DatasetJudge(Reader(), labelled.LEVELS)
    assert list(judge.attributes) == ["gender"]
    assert list(judge.levels) == ["gender", "age"]
    fitted = judge.measured({"age": Cut("old", 47)}, {}, {})
    assert list(fitted.attributes) == ["gender", "age"]
    assert fitted.preprocessing != judge.preprocessing
    split = labelled.drawn(40, 9)
    np.testing.assert_array_equal(fitted(split.images)["age"].argmax(1), split.labels["age"])


# --- errors on labelled images -------------------------------------------------------------


def test_errors_are_counted_on_the_held_out_half_alone(tmp_path):
    dataset = Labelled()
    fit, held_out = halves(dataset.judge)
    assert {*fit} | {*held_out} == {*range(120)}
    judge = calibrated(DatasetJudge(Reader(right=0.9), labelled.LEVELS), dataset, tmp_path)
    counts = judge.confusion["gender"]
    assert counts.sum() == len(held_out) == 60
    part = dataset.judge.take(held_out)
    read_as = Reader(right=0.9)(part.images)["gender"].argmax(1) == 0  # male comes first there
    for truth in (0, 1):
        for label in (0, 1):
            expected = ((part.labels["gender"] == truth) & (read_as == label)).sum()
            assert counts[truth, label] == expected
    assert 0 < counts[0, 1] + counts[1, 0] < 20
    # The cut was found on the other half, and the crossing that a task asks for is there.
    assert 43 <= judge.cuts["age"].start <= 50
    assert judge.confusion["gender/age"].shape == (4, 4)
    assert judge.confusion["gender/age"].sum() == 60


def test_what_was_counted_is_kept_and_found(tmp_path):
    dataset, reader = Labelled(), Reader()
    first = calibrated(DatasetJudge(reader, labelled.LEVELS), dataset, tmp_path)
    calls, reads = reader.calls, dataset.reads
    second = calibrated(DatasetJudge(reader, labelled.LEVELS), dataset, tmp_path)
    assert (reader.calls, dataset.reads) == (calls, reads)
    assert second.cuts == first.cuts
    np.testing.assert_array_equal(second.confusion["gender/age"], first.confusion["gender/age"])
    # Another network, or other data, is measured anew.
    calibrated(DatasetJudge(Reader("other"), labelled.LEVELS), dataset, tmp_path)
    calibrated(DatasetJudge(reader, labelled.LEVELS), Labelled(100), tmp_path)
    assert reader.calls > calls
    folder = tmp_path / "judges" / "labelled" / "calibrations"
    assert len(list(folder.iterdir())) == 3


def test_a_stored_count_that_was_changed_is_measured_again(tmp_path):
    dataset = Labelled()
    calibrated(DatasetJudge(Reader(), labelled.LEVELS), dataset, tmp_path)
    (path,) = (tmp_path / "judges" / "labelled" / "calibrations").iterdir()
    document = json.loads(path.read_text())
    document["held_out"]["gender"]["confusion"][0][0] += 500
    path.write_text(json.dumps(document))
    again = calibrated(DatasetJudge(Reader(), labelled.LEVELS), dataset, tmp_path)
    assert again.confusion["gender"].sum() == 60
    path.write_text("{")
    again = calibrated(DatasetJudge(Reader(), labelled.LEVELS), dataset, tmp_path)
    assert again.confusion["gender"].sum() == 60


def test_what_has_no_image_of_some_cell_is_left_out():
    truth = {"hat": np.array([0, 0, 1, 1]), "age": np.array([0, 0, 1, 1])}
    said = {name: np.eye(2)[labels] for name, labels in truth.items()}
    found = held_out_facts(said, truth, [("hat",), ("hat", "age")])
    assert list(found) == ["hat"]
    assert found["hat"].confusion == ((2, 0), (0, 2))


def test_balanced_accuracy_counts_levels_alike():
    assert balanced_accuracy(np.array([[90, 10], [5, 5]])) == pytest.approx(0.7)
    assert balanced_accuracy(np.array([[90, 10], [0, 0]])) is None


def test_a_data_set_without_a_judge_split_says_so(tmp_path):
    with pytest.raises(InputError) as caught:
        calibrated(DatasetJudge(Reader(), labelled.LEVELS), Labelled(None), tmp_path)
    assert "no judge split" in line(caught)


# --- CLIP in words -------------------------------------------------------------------------


def unit(cosines):
    """One image vector and two sentences of those cosines."""
    first, second = cosines
    return np.array([[1.0, 0, 0]]), np.array(
        [[first, np.sqrt(1 - first**2), 0], [second, 0, np.sqrt(1 - second**2)]]
    )


@pytest.mark.parametrize(
    ("scale", "expected"), [(1, 0.035326), (1 / 0.07, 0.433709), (100, 0.707043)]
)
def test_without_its_scale_a_collapsed_set_looks_fair(scale, expected):
    rows = zero_shot_probabilities(*unit((0.30, 0.20)), scale)
    distance = np.linalg.norm(rows.mean(0).astype(np.float64) - 0.5)
    assert distance == pytest.approx(expected, abs=2e-6)


class Clip:
    """A CLIP whose vectors are known: cosines of .30 with what is right, .20 with what isn't."""

    name, batch_size, weights_sha256 = "clip", 8, "c" * 64
    preprocessing, logit_scale = "none", 100.0

    def __init__(self, scale):
        self.logit_scale = scale

    def text_features(self, sentences):
        self.asked = getattr(self, "asked", []) + list(sentences)
        return np.eye(8, dtype=np.float32)[: len(sentences)]

    def __call__(self, images):
        male = images[:, 1, 1, 0] > 100
        vectors = np.zeros((len(images), 8), np.float32)
        vectors[:, 0] = np.where(male, 0.2, 0.3)
        vectors[:, 1] = np.where(male, 0.3, 0.2)
        vectors[:, 7] = np.sqrt(1 - 0.13)
        return {"features": vectors}


def test_a_zero_shot_reader_without_its_scale_is_refused(tmp_path):
    dataset = Labelled()
    honest = zero_shot.ZeroShotReader(Clip(100.0), dataset)
    judge = calibrated(
        DatasetJudge(honest, {"gender": labelled.LEVELS["gender"]}), dataset, tmp_path
    )
    assert not judge.refused
    assert balanced_accuracy(judge.confusion["gender"]) == 1
    flat = zero_shot.ZeroShotReader(Clip(1.0), dataset)
    judge = calibrated(
        DatasetJudge(flat, {"gender": labelled.LEVELS["gender"]}), dataset, tmp_path
    )
    assert "logit scale" in judge.refused["gender"]
    assert not judge.attributes
    assert flat.preprocessing != honest.preprocessing


def test_sentences_say_the_data_sets_own_phrases():
    assert attribute_sentences(Labelled())["hat"] == (
        "a photo of the face of a person with a hat",
        "a photo of the face of a person without a hat",
    )
    assert attribute_sentences(Labelled())["gender"][0] == "a photo of the face of a female person"


# --- gender and age ------------------------------------------------------------------------


def test_the_shipped_networks_are_those_of_their_card():
    card = json.loads((age_gender.FOLDER / "card.json").read_text())
    assert card["licence"] == "CC0-1.0"
    for name, kind in (("gender", torch.float32), ("age", torch.float16)):
        path = age_gender.FOLDER / card[name]["file"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == card[name]["sha256"]
        assert {value.dtype for value in load_file(path).values()} == {kind}


def test_what_the_shipped_networks_say_of_two_patterns():
    """Numbers that onnxruntime gave for the published ONNX files, float16 rounding allowed."""
    rows, columns = np.mgrid[:64, :64]
    image = np.stack([rows * 4, columns * 4, (rows + columns) * 2], -1).astype(np.uint8)
    reader = AgeGender(age_gender.FOLDER, FaceCrops(NoFaces(), 0.0), "cpu")
    pair = np.stack([image, image[::-1]])
    found = reader(pair)
    np.testing.assert_allclose(found["gender"][:, 1], EXPECTED_MALE, atol=1e-5)
    np.testing.assert_allclose(found["age"] @ np.arange(81), EXPECTED_AGE, atol=0.2)
    np.testing.assert_allclose(found["age"].sum(1), 1, atol=1e-5)


EXPECTED_MALE = (3.3064083e-05, 9.4314796e-01)
EXPECTED_AGE = (24.01574231, 0.97931971)


def test_faces_are_cut_out_tightly():
    images = noise(3, 32)
    (tight,) = FaceCrops(Boxes(), 0.0)(images, 16)
    np.testing.assert_array_equal(tight[1:], images[1:, 4:20, 8:24])
    assert tight[0].shape == (16, 16, 3)  # without a face the central square
    wide, small = FaceCrops(Boxes(), 0.5)(images, 24, 12)
    np.testing.assert_array_equal(wide[1:], images[1:, 0:24, 4:28])
    assert small.shape == (3, 12, 12, 3)


def test_the_margin_is_part_of_the_judge():
    judges = [AgeGender(age_gender.FOLDER, FaceCrops(NoFaces(), m), "cpu") for m in (0.0, 0.5)]
    assert judges[0].preprocessing != judges[1].preprocessing


def test_the_judge_is_made_for_a_data_set():
    assert instrument_specs()["age_and_gender"].per_dataset
    with pytest.raises(InputError, match="depends on the data set"):
        load_instrument("age_and_gender")
    judge = load_instrument("age_and_gender", "judge", dataset=Labelled())
    assert judge.name == "age_and_gender"
    assert (list(judge.attributes), list(judge.levels)) == (["gender"], ["gender", "age"])


def test_a_damaged_file_is_told(tmp_path):
    for path in age_gender.FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "age.safetensors").write_bytes(b"cut off")
    with pytest.raises(AssetError) as caught:
        AgeGender(tmp_path, FaceCrops(NoFaces(), 0.0), "cpu")
    assert "age.safetensors" in line(caught)
    assert "reinstall" in line(caught)
    (tmp_path / "gender.safetensors").unlink()
    with pytest.raises(AssetError, match=r"gender\.safetensors"):
        AgeGender(tmp_path, FaceCrops(NoFaces(), 0.0), "cpu")


# --- FairFace ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """ResNet-34 with 18 outputs and random weights, as FairFace's authors save it."""
    from torchvision.models import resnet34

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = resnet34(num_classes=18)
    path = tmp_path_factory.mktemp("fairface") / "res34_fair_align_multi_7_20190809.pt"
    torch.save(module.state_dict(), path)
    return path, module.eval()


def test_fairface_reads_its_three_heads_in_order(checkpoint):
    path, module = checkpoint
    reader = FairFace(path, FaceCrops(NoFaces(), 0.25), batch_size=2)
    images = noise(2, 224)
    found = reader(images)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    mean, deviation = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    pixels = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
    with torch.inference_mode():
        logits = module(pixels)
    for name, part in (
        ("race", logits[:, :7]),
        ("gender", logits[:, 7:9]),
        ("age", logits[:, 9:]),
    ):
        np.testing.assert_allclose(found[name], part.softmax(1), atol=2e-5)
    judge = DatasetJudge(reader, {"gender": ("female", "male"), "race": ("asian", "white")})
    said = judge(images)
    # The authors say male first, and know two kinds of Asians.
    np.testing.assert_allclose(said["gender"], found["gender"][:, ::-1], rtol=1e-5)
    asian = found["race"][:, 3] + found["race"][:, 4]
    np.testing.assert_allclose(
        said["race"][:, 0], asian / (asian + found["race"][:, 0]), rtol=1e-5
    )


def test_a_wrong_checkpoint_is_told(tmp_path, checkpoint):
    with pytest.raises(AssetError, match="no such file"):
        load_judge(str(tmp_path / "absent.pt"), Labelled(), tmp_path)
    torch.save({"fc.weight": torch.zeros(2, 512)}, tmp_path / "other.pt")
    with pytest.raises(AssetError) as caught:
        FairFace(tmp_path / "other.pt", FaceCrops(NoFaces(), 0.25))
    assert "(18, 512), seen (2, 512)" in line(caught)
    state = dict(list(checkpoint[1].state_dict().items())[3:])
    torch.save(state, tmp_path / "lacking.pt")
    with pytest.raises(AssetError, match="ResNet-34"):
        FairFace(tmp_path / "lacking.pt", FaceCrops(NoFaces(), 0.25))


def test_no_code_of_a_checkpoint_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"fc.weight": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(AssetError):
        FairFace(tmp_path / "trap.pt", FaceCrops(NoFaces(), 0.25))
    assert not (tmp_path / "sprung").exists()


def test_a_checkpoint_is_named_by_its_path(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(fairface, "load_detector", lambda device: NoFaces())
    judge = load_judge(str(checkpoint[0]), Labelled(), tmp_path)
    assert judge.name == "fairface-res34_fair_align_multi_7_20190809"
    assert list(judge.levels) == ["gender", "age"]
    assert load_fairface is fairface.load_fairface


# --- by name -------------------------------------------------------------------------------


def test_trained_judges_take_the_place_of_others_only_where_the_data_set_says_so(tmp_path):
    folder = tmp_path / "judges" / "labelled" / "resnet18-seed0"
    folder.mkdir(parents=True)
    (folder / "card.json").write_text("{}")
    own = Labelled(names=InstrumentNames(("age_and_gender",)))
    assert judge_names(own, (), tmp_path) == ("age_and_gender",)
    ready = Labelled(names=InstrumentNames(("age_and_gender",), trained=True))
    assert judge_names(ready, (), tmp_path) == ("resnet18-seed0",)
    assert judge_names(ready, ("age_and_gender", "age_and_gender"), tmp_path) == (
        "age_and_gender",
    )
    (folder / "card.json").unlink()
    assert judge_names(ready, (), tmp_path) == ("age_and_gender",)
    with pytest.raises(InputError, match="fairbench train-judge --dataset labelled"):
        judge_names(Labelled(names=InstrumentNames((), trained=True)), (), tmp_path)


def test_an_unknown_judge_is_told_with_those_that_are_there(tmp_path):
    with pytest.raises(InputError) as caught:
        load_judge("age_and_gendre", Labelled(), tmp_path)
    assert "did you mean age_and_gender" in line(caught)
    assert "FairFace checkpoint" in line(caught)


# --- EfficientNet-Lite0 --------------------------------------------------------------------


def test_efficientnet_lite0_reads_its_packages_format(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = EfficientNetLite0().eval()
    state = module.state_dict()
    # As the package's file: 296 tensors, counters of the batch norms among them.
    assert len(state) == 296
    assert state["_blocks.15._depthwise_conv.weight"].shape == (1152, 1, 3, 3)
    path = tmp_path / "efficientnet-lite0.pth"
    torch.save(state, path)
    encoder = EfficientNetEncoder("efficientnet_lite0", path, "e" * 64, batch_size=2)
    images = noise(3, 224)
    features = encoder(images)["features"]
    assert features.shape == (3, 1280)
    with torch.inference_mode():
        pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128
        expected = module(pixels)[0].numpy()
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-5)
    torch.save({"_fc.bias": torch.zeros(1000)}, path)
    with pytest.raises(AssetError, match="expected the weights of EfficientNet-Lite0"):
        EfficientNetEncoder("efficientnet_lite0", path, "e" * 64)


def test_padding_is_tensorflows():
    """An even image and a stride of 2: nothing on the left and above, one on the other sides."""
    from fairbench.instruments.efficientnet import SamePadding

    layer = SamePadding(1, 1, 3, 2, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1)
        seen = layer(torch.ones(1, 1, 4, 4))
    np.testing.assert_array_equal(seen[0, 0], [[9, 6], [6, 4]])


def test_the_encoder_is_never_called_fid():
    from fairbench.runs.reference import encoder_columns

    encoder = SimpleNamespace(name="efficientnet_lite0")
    columns = encoder_columns(SimpleNamespace(all_encoders=(encoder,)))["efficientnet_lite0"]
    assert columns.frechet == "frechet_efficientnet_lite0"
    assert columns.kernel == "kernel_efficientnet_lite0"

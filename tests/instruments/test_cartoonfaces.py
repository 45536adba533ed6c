import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fairbench.build import train_judges
from fairbench.core.errors import AssetError, ContractError, InputError
from fairbench.datasets.cartoonfaces import ATTRIBUTES, load_split
from fairbench.inputs.resizing import to_square
from fairbench.instruments import cartoonfaces as judges
from fairbench.instruments.cartoonfaces import load_encoder, load_judge, load_validity
from fairbench.metrics.frechet import frechet_distance


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def held_out():
    return train_judges.held_out_split()


def everything():
    return [load_judge("primary"), load_judge("second"), load_encoder(), load_validity()]


def as_array(output):
    return np.concatenate([array.reshape(len(array), -1) for array in output.values()], axis=1)


@pytest.mark.parametrize("name", list(judges.JUDGES))
def test_judges_read_the_held_out_images_as_their_cards_say(name, held_out):
    judge = load_judge(name)
    measured = train_judges.measure_judge(judge, held_out)
    assert set(judge.confusion) == {*ATTRIBUTES, "gender/race"}
    for key, entry in measured.items():
        card = judge.card["held_out"][key]
        assert entry["n"] == card["n"] == judge.confusion[key].sum() == len(held_out) == 1000
        # An image of slack: another CPU's rounding may move one image over the border.
        assert entry["accuracy"] == pytest.approx(card["accuracy"], abs=1.5e-3)
        assert entry["mean_confidence"] == pytest.approx(card["mean_confidence"], abs=1e-3)
        assert np.trace(judge.confusion[key]) / 1000 == pytest.approx(card["accuracy"])
    accuracies = {key: entry["accuracy"] for key, entry in measured.items()}
    assert min(accuracies[a] for a in ("gender", "race", "role", "glasses")) >= 0.995
    assert accuracies["facial_hair"] >= 0.98
    # Confidence that neither boasts nor doubts: what correction by soft labels rests on.
    for entry in measured.values():
        assert entry["mean_confidence"] == pytest.approx(entry["accuracy"], abs=0.01)


def test_judge_probabilities_follow_the_declared_levels(held_out):
    probabilities = load_judge("primary")(held_out.images[:3])
    assert {k: v.shape[1] for k, v in probabilities.items()} == {
        k: len(v) for k, v in ATTRIBUTES.items()
    }
    for rows in probabilities.values():
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows.sum(1), 1, atol=1e-6)


def test_the_two_judges_differ_in_kind():
    kinds = [
        {type(layer) for layer in architecture().modules()}
        for architecture in judges.JUDGES.values()
    ]
    assert torch.nn.Conv2d in kinds[0]
    assert torch.nn.Conv2d not in kinds[1]


@pytest.mark.parametrize("fault", ["noise 5", "blur 0.5"])
def test_judges_read_mildly_degraded_images(fault, held_out):
    faulty = train_judges.apply(train_judges.ACCEPTED[fault], held_out.images[:500])
    for name in judges.JUDGES:
        probabilities = load_judge(name)(faulty)
        for key in ("gender", "race", "role"):
            right = probabilities[key].argmax(1) == held_out.labels[key][:500]
            assert right.mean() >= 0.99, (name, key)


def test_validity_bars(held_out):
    measured = train_judges.measure_validity(load_validity(), held_out)
    assert measured["rejected"].keys() == train_judges.REJECTED.keys()
    for name, entry in measured["accepted"].items():
        assert entry["valid"] >= 0.99, name
    for name, entry in measured["rejected"].items():
        assert entry["valid"] <= 0.01, name


@pytest.mark.parametrize("index", range(4))
def test_a_result_does_not_depend_on_the_images_that_came_with_it(index, held_out):
    network = everything()[index]
    images = held_out.images[:150]
    whole = as_array(network(images))
    order = np.random.default_rng(0).permutation(len(images))
    np.testing.assert_array_equal(as_array(network(images[order])), whole[order])
    for piece in (slice(0, 1), slice(7, 20), slice(63, 65), slice(64, 150)):
        np.testing.assert_array_equal(as_array(network(images[piece])), whole[piece])


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize(
    "images",
    [
        np.zeros((0, 32, 32, 3), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((2, 3, 32, 32), np.uint8),
        np.zeros((2, 0, 32, 3), np.uint8),
        np.zeros((2, 32, 32, 3), np.float32),
    ],
)
def test_other_images_break_the_contract(index, images):
    with pytest.raises(ContractError, match="images must"):
        everything()[index](images)


@pytest.mark.parametrize("index", range(4))
def test_images_of_another_size_are_cut_to_the_central_square_and_resized(index, held_out):
    network = everything()[index]
    rng = np.random.default_rng(0)
    oblong = rng.integers(0, 256, (3, 40, 70, 3), dtype=np.uint8)
    squares = np.stack([to_square(Image.fromarray(image), 32) for image in oblong])
    np.testing.assert_array_equal(as_array(network(oblong)), as_array(network(squares)))
    # Faces of four times the size are read as they were.
    faces = held_out.images[:20]
    large = np.stack([to_square(Image.fromarray(image), 128) for image in faces])
    seen = [as_array(network(images)) for images in (faces, large)]
    if index < 2:
        np.testing.assert_array_equal(seen[0][:, :2].argmax(1), seen[1][:, :2].argmax(1))


def test_damaged_or_missing_files_are_named(tmp_path, monkeypatch):
    shutil.copytree(judges.FOLDER, tmp_path / "judges")
    monkeypatch.setattr(judges, "FOLDER", tmp_path / "judges")
    weights = tmp_path / "judges" / "second.safetensors"
    packed = bytearray(weights.read_bytes())
    packed[-1] ^= 1
    weights.write_bytes(packed)
    with pytest.raises(AssetError, match=r"second\.safetensors: sha256 .* expected .* reinstall"):
        load_judge("second")
    weights.unlink()
    with pytest.raises(AssetError, match=r"second\.safetensors: No such file"):
        load_judge("second")
    (tmp_path / "judges" / "validity.json").write_text("{")
    with pytest.raises(AssetError, match=r"validity\.json: .* reinstall"):
        load_validity()


def test_unknown_names_suggest_known_ones():
    with pytest.raises(InputError, match="primary"):
        load_judge("primry")
    with pytest.raises(InputError, match="cartoonfaces"):
        load_encoder("cartoonface")


def test_loading_leaves_the_global_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    everything()
    assert torch.equal(torch.get_rng_state(), before)


def test_encoder_distances_grow_with_the_fault(held_out):
    network = load_encoder()

    def encoder(images):
        return network(images)["features"]

    reference = encoder(load_split("evaluation").images[:1000])
    real = encoder(held_out.images)
    assert real.shape == (1000, network.dimension)
    assert real.dtype == np.float32
    floor = frechet_distance(real, reference)
    for ladder in ("blur, px", "noise, levels"):
        rungs = train_judges.LADDERS[ladder]
        distances = [
            frechet_distance(encoder(train_judges.apply(rungs[rung], held_out.images)), reference)
            for rung in list(rungs)[1:]
        ]
        assert floor < distances[0]
        assert distances == sorted(distances)
        assert distances[1] > 2 * floor


def test_the_encoder_card_is_monotone():
    rows = load_encoder().card["frechet_distances_n1000"]
    floor = max(rows["real"].values())
    for ladder in ("blur, px", "noise, levels", "averaged, share of the other", "male share"):
        distances = list(rows[ladder].values())
        assert distances == sorted(distances), ladder
        assert distances[-1] > 2 * floor, ladder
    assert min(rows["one race only"].values()) > 2 * floor


@pytest.mark.parametrize("network", [*judges.JUDGES, *judges.ENCODERS, "validity"])
def test_cards_name_the_shipped_split_and_stay_small(network):
    card = json.loads((judges.FOLDER / f"{network}.json").read_text())
    assert card["data"]["split"] == "judge"
    assert card["data"]["fit"] + card["data"]["held_out"] == len(load_split("judge"))
    assert card["parameters"] < 400_000
    assert sum(p.stat().st_size for p in judges.FOLDER.iterdir()) < 6 << 20


def test_corruptions_do_what_their_names_say(held_out):
    rng = torch.Generator().manual_seed(0)
    x = train_judges.to_pixels(held_out.images[:6])
    torch.testing.assert_close(train_judges.blur(x, 0.0), x)
    torch.testing.assert_close(train_judges.block_compressed(x, 1e-4), x, atol=0.01, rtol=0)
    flat = torch.full_like(x, 90.0)
    torch.testing.assert_close(train_judges.blur(flat, 3.0), flat)
    squares = train_judges.shuffled(x, 8, rng)
    assert not torch.equal(squares, x)
    torch.testing.assert_close(squares.sort(-1)[0].sum((2, 3)), x.sort(-1)[0].sum((2, 3)))
    assert np.array_equal(train_judges.to_images(x), held_out.images[:6])


@pytest.mark.slow
def test_training_is_repeatable(monkeypatch):
    fit = train_judges.fit_split()
    monkeypatch.setitem(train_judges.STEPS, "primary", 20)
    monkeypatch.setattr(train_judges, "FIT", 640)
    short = fit.take(np.arange(640))
    first, _ = train_judges.train_judge("primary", short)
    second, _ = train_judges.train_judge("primary", short)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)

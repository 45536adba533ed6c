from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image

from fairbench.core.errors import AssetError, ContractError, InputError
from fairbench.datasets import cartoonfaces
from fairbench.instruments.faces import (
    FaceDetector,
    Faces,
    IdentityEncoder,
    crop_faces,
    detect_faces,
    identities,
    load_detector,
    load_identity_encoder,
)
from fairbench.storage.readings import ImageList, reading_key

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def detector():
    return load_detector()


@pytest.fixture(scope="module")
def cartoons():
    """Twelve faces of 32 pixels; MTCNN finds most of them."""
    return cartoonfaces.load_split("evaluation").images[:12]


@pytest.fixture(scope="module")
def found(detector, cartoons):
    return Faces(**detector(cartoons))


def same(first, second):
    for field in fields(Faces):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))


# --- detection -----------------------------------------------------------------------------


def test_every_array_has_its_shape_and_type(found):
    assert {*FaceDetector.outputs} == {field.name for field in fields(Faces)}
    for name, kind in FaceDetector.outputs.items():
        assert getattr(found, name).dtype == kind
    assert found.count.shape == (12, 3)
    assert found.box.shape == (12, 4)
    assert len(found) == 12


def test_faces_are_those_of_facenet_pytorch_on_the_enlarged_picture(found, cartoons):
    from facenet_pytorch import MTCNN

    mtcnn = MTCNN(select_largest=False)
    assert 6 <= found.valid(0.7).sum() <= 12
    for index, pixels in enumerate(cartoons):
        picture = Image.fromarray(pixels).resize((160, 160), Image.Resampling.BICUBIC)
        boxes, probabilities = mtcnn.detect(picture)
        if boxes is None:
            assert found.confidence[index] == found.area[index] == 0
            assert np.isnan(found.box[index]).all()
        else:
            assert found.confidence[index] == np.float32(max(probabilities))
            assert len(boxes) == found.count[index, 0] == 1
            expected = np.asarray(boxes[0], float) / 5
            np.testing.assert_allclose(found.box[index], expected, rtol=1e-6)
            left, top, right, bottom = np.clip(found.box[index], 0, 32)
            expected = (right - left) * (bottom - top) / 32**2
            assert found.area[index] == pytest.approx(expected, rel=1e-5)


def test_counts_follow_the_confidence(found):
    for probability in (0.7, 0.9, 0.99):
        np.testing.assert_array_equal(found.valid(probability), found.confidence >= probability)
    assert not found.multiple().any()
    with pytest.raises(ContractError, match=r"counted at 0.7, 0.9, 0.99; seen 0.5"):
        found.valid(0.5)


def test_an_image_is_read_alike_in_any_company(detector, cartoons, found):
    order = [7, 2, 2, 11]
    mixed = Faces(**detector(cartoons[order]))
    for field in fields(Faces):
        np.testing.assert_array_equal(
            getattr(mixed, field.name), getattr(found, field.name)[order]
        )


def test_two_faces_in_one_picture(detector, cartoons, found):
    sure = cartoons[found.confidence.argsort()[-2:]]
    side_by_side = np.concatenate(sure, axis=1)
    large = np.asarray(Image.fromarray(side_by_side).resize((400, 200), Image.Resampling.BICUBIC))
    seen = Faces(**detector(large[None]))
    assert seen.multiple().all()
    assert seen.area[0] < 0.5


@pytest.mark.parametrize("side", [8, 16, 32, 160, 170])
def test_blank_pictures_have_no_face_at_any_size(detector, side):
    seen = Faces(**detector(np.full((1, side, side, 3), 255, np.uint8)))
    assert seen.confidence[0] == 0
    assert not seen.failed[0]
    assert not seen.valid(0.7).any()


def test_noise_has_no_face(detector):
    seen = Faces(**detector(RNG.integers(0, 256, (4, 32, 48, 3), dtype=np.uint8)))
    assert not seen.valid().any()


class Broken:
    """A detector that breaks off as facenet-pytorch does on candidates outside the image."""

    def __init__(self, error):
        self.error = error

    def detect(self, pixels):
        if pixels.max() == 0:
            raise self.error
        return np.array([[10.0, 10, 60, 90], [0, 0, 100, 100]]), np.array([0.95, 0.8])


@pytest.mark.parametrize(
    "error",
    [
        IndexError("The shape of the mask [1] at index 0 does not match"),
        RuntimeError("torch.cat(): expected a non-empty list of Tensors"),
    ],
)
def test_an_image_that_breaks_the_detector_is_no_face_and_spoils_no_other(error):
    images = np.zeros((3, 160, 160, 3), np.uint8)
    images[1] = 200
    seen = Faces(**FaceDetector(Broken(error), "")(images))
    assert seen.failed.tolist() == [True, False, True]
    assert seen.valid().tolist() == [False, True, False]
    # The larger face is not sure enough to be the one that is measured.
    assert seen.box[1].tolist() == [10, 10, 60, 90]
    assert seen.count[1].tolist() == [2, 1, 0]
    assert seen.area[1] == pytest.approx(50 * 80 / 160**2)


def test_other_errors_of_the_detector_are_not_taken_for_no_face():
    broken = FaceDetector(Broken(RuntimeError("out of memory")), "")
    with pytest.raises(RuntimeError, match="out of memory"):
        broken(np.zeros((1, 160, 160, 3), np.uint8))


def test_loading_leaves_the_global_generator_alone(detector):
    before = torch.random.get_rng_state()
    load_detector()
    assert torch.equal(before, torch.random.get_rng_state())


def test_faces_are_detected_once(detector, cartoons, tmp_path, monkeypatch):
    told = []
    first = detect_faces(cartoons[:3], detector, tmp_path, lambda *args: told.append(args))
    assert told == [("measuring: mtcnn", 3, 3)]
    monkeypatch.setattr(FaceDetector, "_read", None)
    same(detect_faces(cartoons[:3], detector, tmp_path), first)
    with pytest.raises(TypeError):
        detect_faces(cartoons[1:4], detector, tmp_path)


def test_the_key_holds_the_detector(detector, cartoons):
    listed = ImageList.of(cartoons)
    other = FaceDetector(detector._mtcnn, "0" * 64)
    assert reading_key(listed, detector) != reading_key(listed, other)


def test_a_missing_weight_file_of_the_wheel(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AssetError, match=r"pnet.pt not found.*pip install"):
        load_detector()


def test_other_shapes_are_refused(detector):
    with pytest.raises(ContractError, match="images must"):
        detector(np.zeros((1, 3, 32, 32), np.uint8))


# --- crops ---------------------------------------------------------------------------------


def test_a_crop_is_the_box_with_its_margin():
    pixels = RNG.integers(0, 256, (200, 300, 3), dtype=np.uint8)
    # 128 high, less wide: the square is 160 pixels, so nothing is resized.
    box = np.array([[100, 30, 200, 158]], np.float32)
    (crop,) = crop_faces(pixels[None], box)
    np.testing.assert_array_equal(crop, pixels[14:174, 70:230])


@pytest.mark.parametrize("box", [[-30, -40, 50, 60], [150, 90, 260, 170], [-50, -50, 250, 250]])
def test_beyond_the_image_its_edge_is_repeated(box):
    flat = np.full((1, 120, 200, 3), (10, 200, 90), np.uint8)
    (crop,) = crop_faces(flat, np.array([box], np.float32))
    np.testing.assert_array_equal(crop, np.broadcast_to((10, 200, 90), (160, 160, 3)))


@pytest.mark.parametrize(
    "boxes",
    [np.zeros((1, 3)), np.full((1, 4), np.nan), np.zeros((1, 4)), np.array([[9, 0, 1, 5]])],
)
def test_boxes_that_are_none(boxes):
    with pytest.raises(ContractError, match="expected"):
        crop_faces(np.zeros((1, 8, 8, 3), np.uint8), boxes.astype(np.float32))


# --- identity ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """The identity network with random weights, in its release's file format."""
    from facenet_pytorch import InceptionResnetV1

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = InceptionResnetV1(classify=True, num_classes=5).state_dict()
    path = tmp_path_factory.mktemp("facenet") / "20180402-114759-vggface2.pt"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def network(weights_file):
    return IdentityEncoder("facenet-vggface2", weights_file, "f" * 64, batch_size=2)


def test_embeddings_are_those_of_facenet_pytorch(network, weights_file):
    from facenet_pytorch import InceptionResnetV1
    from facenet_pytorch.models.mtcnn import fixed_image_standardization

    crops = RNG.integers(0, 256, (3, 160, 160, 3), dtype=np.uint8)
    module = InceptionResnetV1(classify=True, num_classes=5).eval()
    module.load_state_dict(torch.load(weights_file, weights_only=True))
    module.classify = False
    with torch.inference_mode():
        pixels = torch.from_numpy(crops).permute(0, 3, 1, 2).float()
        expected = module(fixed_image_standardization(pixels))
    seen = network(crops)["features"]
    assert seen.shape == (3, 512)
    np.testing.assert_allclose(np.linalg.norm(seen, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(seen, expected.numpy(), atol=1e-5)


def test_only_crops_are_embedded(network):
    with pytest.raises(ContractError, match="faces of 160 pixels"):
        network(np.zeros((1, 32, 32, 3), np.uint8))


def test_identities_are_those_of_the_valid_faces(network, cartoons, found, tmp_path, monkeypatch):
    chosen = [*found.valid().nonzero()[0][:2], *(~found.valid()).nonzero()[0][:1]]
    images = cartoons[chosen]
    part = Faces(*(getattr(found, field.name)[chosen] for field in fields(Faces)))
    first = identities(images, part, network, tmp_path)
    assert first.index.tolist() == [0, 1]
    assert first.vectors.shape == (len(first), 512)
    expected = network(crop_faces(images[:2], part.box[:2]))["features"]
    np.testing.assert_allclose(first.vectors, expected, atol=1e-6)
    monkeypatch.setattr(IdentityEncoder, "__call__", None)
    np.testing.assert_array_equal(
        identities(images, part, network, tmp_path).vectors, first.vectors
    )
    with pytest.raises(ContractError, match="expected the faces of 2 images"):
        identities(images[:2], part, network, tmp_path)


def test_no_valid_face_at_all(network, detector, tmp_path):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    seen = identities(images, Faces(**detector(images)), network, tmp_path)
    assert len(seen) == 0
    assert seen.vectors.shape == (0, 512)


def test_a_network_is_loaded_by_name(weights_file, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRBENCH_WEIGHTS", str(weights_file.parent))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    before = torch.random.get_rng_state()
    encoder = load_identity_encoder()
    assert torch.equal(before, torch.random.get_rng_state())
    assert (encoder.name, encoder.dimension) == ("facenet-vggface2", 512)
    with pytest.raises(AssetError, match=r"casia-webface.pt not found; looked for .*download"):
        load_identity_encoder("facenet-casia-webface")
    with pytest.raises(InputError, match="unknown identity encoder 'facenet'"):
        load_identity_encoder("facenet")


@pytest.mark.parametrize("content", [{"a": torch.zeros(1)}, {"last_bn.bias": torch.zeros(3)}])
def test_a_file_of_another_network(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(AssetError, match="doesn't hold the weights of facenet-pytorch's") as e:
        IdentityEncoder("facenet-vggface2", tmp_path / "a.pt", "")
    assert "\n" not in str(e.value)

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from types import MappingProxyType

import numpy as np
import pytest
import torch
from PIL import Image

from fairbench.core.errors import AssetError, ContractError, InputError
from fairbench.instruments import clip as clip_file
from fairbench.instruments import weights
from fairbench.instruments.base import Runner
from fairbench.instruments.catalogue import instrument_specs, load_instrument
from fairbench.instruments.clip import ClipEncoder
from fairbench.instruments.dinov2 import DinoEncoder
from fairbench.instruments.inception import InceptionEncoder, clean_resize
from fairbench.instruments.loading import load_public
from fairbench.instruments.weights import WEIGHTS
from fairbench.storage.readings import ImageList, reading_key

RNG = np.random.default_rng(0)


def noise(n, height, width=None):
    return RNG.integers(0, 256, (n, height, width or height, 3), dtype=np.uint8)


def line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- stand-ins in the real formats ---------------------------------------------------------


def random_inception(path):
    """torch-fidelity's network with random weights, in its release's file format.

    He-normal: with torch's default initialisation all images would get the same features.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr(
            "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url",
            lambda url, progress: None,
        )
        module = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.normal_(0, (2 / layer.weight[0].numel()) ** 0.5, generator=generator)
        elif isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
    torch.save(module.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    return random_inception(tmp_path_factory.mktemp("inception") / "random.pth")


@pytest.fixture(scope="module")
def inception(inception_file):
    return {
        clean: InceptionEncoder("inception", inception_file, "a" * 64, clean=clean, batch_size=2)
        for clean in (True, False)
    }


def tiny_dino(folder, **changes):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        **{
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            **changes,
        }
    )
    torch.manual_seed(0)
    Dinov2Model(config).save_pretrained(folder)
    return folder


def tiny_clip(folder):
    from transformers import CLIPConfig, CLIPModel

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate([*words, *special])}
    layers = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = CLIPConfig(
        text_config={
            **layers,
            "vocab_size": len(vocabulary),
            "bos_token_id": vocabulary[special[0]],
            "eos_token_id": vocabulary[special[1]],
            "pad_token_id": vocabulary[special[1]],
        },
        vision_config={**layers, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    return tiny_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def dino(dino_folder):
    return DinoEncoder("dino", dino_folder, "b" * 64, batch_size=4)


@pytest.fixture(scope="module")
def clip(clip_folder):
    return ClipEncoder("clip", clip_folder, "c" * 64, batch_size=4)


# --- Inception -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64), (299, 299), (512, 512), (40, 70)])
def test_resizing_is_clean_fids_in_every_bit(shape):
    from cleanfid.resize import build_resizer

    images = noise(2, *shape)
    with warnings.catch_warnings():
        # Some versions of Pillow deprecate the mode argument that clean-fid passes.
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = np.stack([build_resizer("clean")(image) for image in images])
    ours = clean_resize(images)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)


class Images(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def test_both_modes_agree_with_torch_fidelity_at_299(inception, inception_file):
    """There its own resizing is the identity, and so is clean-fid's."""
    from torch_fidelity import calculate_metrics
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    first, second = noise(3, 299), noise(3, 299) // 2
    seen = [inception[True](images) for images in (first, second)]
    spread = seen[0]["features"].std(0).mean()
    assert spread > 0.01
    native = inception[False](first)
    np.testing.assert_allclose(native["features"], seen[0]["features"], atol=1e-4 * spread)
    np.testing.assert_allclose(native["logits"], seen[0]["logits"], atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = calculate_metrics(
            input1=Images(first),
            input2=Images(second),
            cuda=False,
            batch_size=3,
            isc=True,
            kid=True,
            isc_splits=1,
            kid_subsets=2,
            kid_subset_size=2,
            feature_extractor_weights_path=str(inception_file),
            save_cpu_ram=True,
            cache=False,
            verbose=False,
        )
    pooled = [torch.from_numpy(one["features"]) for one in seen]
    ours = kid_features_to_metric(*pooled, kid_subsets=2, kid_subset_size=2, verbose=False)
    ours |= isc_features_to_metric(torch.from_numpy(seen[0]["logits"]), splits=1)
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], rel=1e-4), name


def test_the_two_modes_differ_below_299(inception):
    images = noise(1, 32)
    clean, native = inception[True](images), inception[False](images)
    assert clean["features"].shape == (1, 2048)
    assert clean["logits"].shape == (1, 1008)
    assert clean["features"].dtype == clean["logits"].dtype == np.float32
    assert np.abs(clean["features"] - native["features"]).max() > 1e-3 * clean["features"].std()
    assert inception[True].preprocessing != inception[False].preprocessing


def test_neighbours_do_not_change_an_image(inception):
    images = noise(3, 16)
    together = inception[True](images)["features"]
    alone = inception[True](images[2:])["features"]
    np.testing.assert_allclose(alone[0], together[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "can't be read"),
        (b"PK\3\4 half of a file", "can't be read"),
        ({"fc.bias": torch.zeros(2)}, "doesn't hold the weights of torch-fidelity's"),
        (torch.zeros(2), "seen Tensor"),
        ({"a": 1}, "seen dict"),
    ],
)
def test_files_that_hold_no_inception(tmp_path, content, text):
    path = tmp_path / "a.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(AssetError) as caught:
        InceptionEncoder("inception", path, "", clean=True)
    assert text in line(caught)
    assert str(path) in line(caught)


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def test_a_weight_file_can_not_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.bias": Attack()}, tmp_path / "a.pth")
    with pytest.raises(AssetError, match="can't be read"):
        InceptionEncoder("inception", tmp_path / "a.pth", "", clean=True)
    assert not (tmp_path / "attacked").exists()


def test_loading_leaves_the_global_generator_alone(inception_file, dino_folder, clip_folder):
    before = torch.random.get_rng_state()
    InceptionEncoder("inception", inception_file, "", clean=True)
    DinoEncoder("dino", dino_folder, "")
    ClipEncoder("clip", clip_folder, "")
    assert torch.equal(before, torch.random.get_rng_state())


# --- DINOv2 --------------------------------------------------------------------------------


def test_dino_agrees_with_its_model_on_torchvisions_preprocessing(dino, dino_folder):
    from torchvision.transforms.v2 import functional as transforms
    from transformers import Dinov2Model

    images = noise(5, 64)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    resized = transforms.resize(
        pixels, [224, 224], transforms.InterpolationMode.BICUBIC, antialias=True
    )
    resized = resized.clamp(0, 255) / 255
    scaled = transforms.normalize(resized, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    model = Dinov2Model.from_pretrained(dino_folder).eval()
    with torch.inference_mode():
        expected = model(pixel_values=scaled).pooler_output
    seen = dino(images)
    assert {*seen} == {"features"}
    assert dino.dimension == 32
    np.testing.assert_allclose(seen["features"], expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(dino(images[4:])["features"], seen["features"][4:], atol=1e-5)


# --- CLIP ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64), (48, 80), (80, 48), (20, 31)])
def test_clip_keeps_the_aspect_as_torchvision_does(clip, shape):
    from torchvision.transforms import functional as transforms

    images = noise(2, *shape)
    expected = []
    for image in images:
        picture = transforms.resize(
            Image.fromarray(image), 32, transforms.InterpolationMode.BICUBIC
        )
        cut = transforms.to_tensor(transforms.center_crop(picture, [32, 32]))
        expected.append(transforms.normalize(cut, clip_file.CLIP_MEAN, clip_file.CLIP_DEVIATION))
    torch.testing.assert_close(clip._resized(images), torch.stack(expected))


def test_clip_vectors_are_of_unit_length_and_those_of_its_model(clip, clip_folder):
    from transformers import CLIPModel, CLIPTokenizer

    images, prompts = noise(5, 40), ["a cat", "a very small dog", "a", "b", "c"]
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    with torch.inference_mode():
        # As upstream's examples do it: padded to the longest, with a mask.
        tokens = tokenizer(prompts, padding=True, return_tensors="pt")
        out = model(pixel_values=clip._resized(images), **tokens)
    seen, texts = clip(images), clip.text_features(prompts)
    np.testing.assert_allclose(np.linalg.norm(seen["features"], axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(seen["features"], out.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(texts, out.text_embeds.numpy(), atol=1e-5)
    cosines = (out.image_embeds * out.text_embeds).sum(1).numpy()
    scores = clip.clip_score(images, prompts)
    np.testing.assert_allclose(scores, 100 * cosines, atol=1e-3)
    assert scores.dtype == np.float32
    twice = clip.alignment(seen["features"], ["a", "a", "a cat", "a", "a"])
    assert twice[2] == pytest.approx(100 * seen["features"][2] @ texts[0], abs=1e-3)


def test_long_prompts_are_cut_rather_than_refused(clip):
    assert clip.text_features(["a " * 500]).shape == (1, 16)


def test_clip_score_wants_one_prompt_an_image(clip):
    with pytest.raises(ContractError, match="one prompt for each of 2 images, seen 1"):
        clip.clip_score(noise(2, 8), ["a"])
    with pytest.raises(ContractError, match="at least one prompt"):
        clip.text_features([])


def test_the_older_file_format_is_read_too_but_not_the_code_in_it(clip, clip_folder, tmp_path):
    """OpenAI's releases are ``pytorch_model.bin``, with two more buffers."""
    from safetensors.torch import load_file

    state = load_file(clip_folder / "model.safetensors")
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    for file in ("config.json", "vocab.json", "merges.txt"):
        (tmp_path / file).write_bytes((clip_folder / file).read_bytes())
    torch.save(state, tmp_path / "pytorch_model.bin")
    images = noise(2, 32)
    older = ClipEncoder("clip", tmp_path, "", batch_size=4)
    np.testing.assert_array_equal(older(images)["features"], clip(images)["features"])
    torch.save(state | {"x": Attack()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(AssetError, match="it holds more than tensors") as caught:
        ClipEncoder("clip", tmp_path, "")
    assert "weights_only" not in line(caught)


def test_loading_prints_nothing(dino_folder, clip_folder, capfd):
    DinoEncoder("dino", dino_folder, "")
    ClipEncoder("clip", clip_folder, "")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_formats_run_under_autocast(dino, dtype, monkeypatch):
    """On the CPU here, where `Runner` itself refuses them."""
    images = noise(3, 32)
    expected = dino(images)["features"]
    monkeypatch.setattr(dino._runner, "dtype", dtype)
    seen = dino(images)["features"]
    assert seen.dtype == np.float32
    assert 0 < np.abs(seen - expected).max() < 0.1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_gpu_gives_the_same_features(dino, dino_folder, clip, clip_folder, dtype):
    images = noise(5, 64)
    for cpu, folder in ((dino, dino_folder), (clip, clip_folder)):
        gpu = type(cpu)(cpu.name, folder, "", device="cuda", dtype=dtype, batch_size=4)
        tolerance = 1e-4 if dtype == "float32" else 0.1
        np.testing.assert_allclose(
            gpu(images)["features"], cpu(images)["features"], atol=tolerance
        )


# --- what all of them refuse ---------------------------------------------------------------


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((1, 0, 8, 3), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((1, 3, 8, 8), np.uint8),
        np.zeros((1, 8, 8, 3), np.float32),
    ],
)
def test_other_shapes_and_types_are_refused(images, dino, clip, inception):
    for encoder in (dino, clip, inception[True], inception[False]):
        with pytest.raises(ContractError, match="images must"):
            encoder(images)
    with pytest.raises(ContractError, match="images must"):
        ImageList.of(images)


def test_half_formats_need_cuda(dino_folder):
    for dtype in ("bfloat16", "float16"):
        with pytest.raises(InputError, match=f"{dtype} needs a CUDA device, seen cpu"):
            DinoEncoder("dino", dino_folder, "", dtype=dtype)
    with pytest.raises(InputError, match="must be one of float32"):
        Runner(torch.nn.Identity(), device="cpu", dtype="float64")
    with pytest.raises(InputError, match="batch size must be 1 or more"):
        Runner(torch.nn.Identity(), device="cpu", batch_size=0)


def test_the_network_always_sees_one_shape():
    shapes = []

    def call(batch):
        shapes.append(tuple(batch.shape))
        return [batch.double(), 2 * batch]

    runner = Runner(torch.nn.Identity(), device="cpu", batch_size=4)
    rows = np.arange(18, dtype=np.float32).reshape(9, 2)
    once, twice = runner.run(rows, torch.from_numpy, call, "rows")
    assert shapes == [(4, 2)] * 3
    np.testing.assert_array_equal(once, rows)
    np.testing.assert_array_equal(twice, 2 * rows)
    assert once.dtype == np.float32


def test_results_that_are_not_finite_are_refused():
    runner = Runner(torch.nn.Identity(), device="cpu")
    with pytest.raises(InputError, match="probe: float32 results aren't all finite"):
        runner.run(np.full((1, 2), np.inf, "f4"), torch.from_numpy, lambda x: [x], "probe")


def test_a_folder_of_another_model(dino_folder, clip_folder):
    with pytest.raises(AssetError, match="expected a dinov2 model, seen clip"):
        DinoEncoder("dino", clip_folder, "")
    with pytest.raises(AssetError, match="expected a clip model, seen dinov2"):
        ClipEncoder("clip", dino_folder, "")


def test_a_model_with_weights_missing_is_refused_rather_than_filled_up(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_dino(tmp_path / "dino")
    state = load_file(folder / "model.safetensors")
    lost = next(name for name in state if name.endswith("norm1.weight"))
    del state[lost]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AssetError, match="1 weights of the dinov2 model are missing") as caught:
        DinoEncoder("dino", folder, "")
    assert "norm1.weight" in line(caught)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_damaged_model_folders(tmp_path, file):
    folder = tiny_dino(tmp_path / "dino")
    (folder / file).write_bytes(b"damaged")
    with pytest.raises(AssetError) as caught:
        DinoEncoder("dino", folder, "")
    assert "can't be loaded as a dinov2 model" in line(caught)


def test_a_damaged_tokenizer(tmp_path):
    folder = tiny_clip(tmp_path / "clip")
    (folder / "vocab.json").write_bytes(b"damaged")
    with pytest.raises(AssetError, match="its tokenizer can't be read"):
        ClipEncoder("clip", folder, "")


# --- by name -------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRBENCH_WEIGHTS", str(tmp_path))
    return tmp_path


def test_every_encoder_has_a_weight_file():
    specs = instrument_specs().values()
    assert {spec.weights for spec in specs if spec.weights} <= {*WEIGHTS}
    public = {spec.name for spec in specs if spec.kind == "encoder" and spec.weights}
    assert public == {
        "inception@clean",
        "inception@tf",
        "dinov2-vit-b-14",
        "dinov2-vit-l-14",
        "clip-vit-l-14-336",
        "clip-vit-b-32",
        "efficientnet_lite0",
    }


def test_an_encoder_is_loaded_by_name(own):
    name = "dinov2-vit-b-14"
    tiny_dino(own / name)
    with pytest.raises(AssetError) as caught:
        load_instrument(name)
    assert "expected dinov2-vit-b-14 with 768 features of 224 pixels" in line(caught)
    encoder = load_public(name, name, DinoEncoder, 32, 224, batch_size=3)
    assert (encoder.name, encoder.batch_size) == (name, 3)
    assert encoder.weights_sha256 == weights.verify_weights(name, own / name)
    with pytest.raises(InputError, match=r"unknown encoder 'dinov2'; .*dinov2-vit-b-14"):
        load_instrument("dinov2", "encoder")


def test_an_encoder_without_weights_says_how_to_get_them(own, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(own / "torch"))
    with pytest.raises(AssetError, match=r"6726825d.pth not found; looked for .*; download https"):
        load_instrument("inception@clean")


def test_inception_is_loaded_only_with_the_published_hash(own, inception_file, monkeypatch):
    spec = WEIGHTS["inception-torch-fidelity"]
    (own / spec.files[0]).symlink_to(inception_file)
    with pytest.raises(AssetError, match="expected 6726825d…"):
        load_instrument("inception@clean")
    random = dataclasses.replace(spec, sha256_prefix="")
    monkeypatch.setattr(weights, "WEIGHTS", MappingProxyType({spec.name: random}))
    clean, native = (load_instrument(f"inception@{mode}") for mode in ("clean", "tf"))
    assert clean.weights_sha256 == native.weights_sha256
    listed = ImageList.of(noise(1, 8))
    assert reading_key(listed, clean) != reading_key(listed, native)

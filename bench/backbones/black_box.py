"""Any other text-to-image pipeline of diffusers, called as a whole: prompts in, images out.

SD 3, FLUX, PixArt, SANA and models that were distilled to a few steps, such as Turbo and LCM.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NoReturn, cast

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fairbench.backbones.base import Description, Family, default_network_batch
from fairbench.backbones.diffusers_pipelines import load_parts
from fairbench.backbones.folders import PipelineFolder
from fairbench.core.errors import AssetError, ContractError, InputError
from fairbench.core.method import SamplingConfig
from fairbench.diffusion.backbone import Backbone, Capability, Edit, WholeCall
from fairbench.diffusion.schedule import Schedule

__all__ = ["BlackBox", "call_defaults", "few_steps", "why_not"]

PICTURES = frozenset(
    {"image", "images", "mask_image", "control_image", "image_embeds", "video", "original_image"}
)
"""Arguments of pipelines that start from a picture."""

OTHER_MEDIA = frozenset({"num_frames", "video_length", "audio_length_in_s", "audio_end_in_s"})

OTHER_OUTPUT = "Prior|Video|Audio|AceStep|ShapE|LDM3D|Pix2PixZero|LLaDA"
"""In the names of classes that make embeddings, films, sound or shapes of prompts."""

DENOISERS = ("transformer", "unet", "decoder", "prior")

PER_CALL = frozenset(
    {"prompt", "generator", "output_type", "num_inference_steps", "guidance_scale", "return_dict"}
)


def pipeline_class(kind: str) -> type[Any] | None:
    """A pipeline class of diffusers by name; None if there is none."""
    found = getattr(diffusers, kind, None)
    return found if isinstance(found, type) else None


def why_not(kind: str) -> str | None:
    """Why pipelines of a class can't be called as a whole, in words; None if they can."""
    made = pipeline_class(kind)
    if made is None:
        return f"which diffusers {diffusers.__version__} doesn't know"
    # Imports every pipeline that there is, which folders of the other families needn't wait for.
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    accepted = inspect.signature(made.__call__).parameters
    listed = {one.__name__ for one in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
    # Some that make images of prompts alone edit pictures as well.
    pictures = set() if kind in listed and "Control" not in kind else PICTURES & accepted.keys()
    if pictures or re.search("Inpaint|Img2Img", kind):
        return "which starts from a picture: it is no text-to-image pipeline"
    if OTHER_MEDIA & accepted.keys() or re.search(OTHER_OUTPUT, kind):
        return "which makes no single images"
    if not {"prompt", "generator", "output_type", "num_inference_steps"} <= accepted.keys():
        return "which is no text-to-image pipeline"
    required = [
        name
        for name, one in accepted.items()
        if one.default is inspect.Parameter.empty
        and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        and name not in ("self", "prompt")
    ]
    return f"which needs {', '.join(required)} beside a prompt" if required else None


def few_steps(pipeline: PipelineFolder) -> str | None:
    """Why a Stable Diffusion folder can only be called as a whole; None if that isn't so.

    Models that were distilled to a few steps have an embedding of the guidance scale, or a
    scheduler made for few steps: LCM's, TCD's, or Euler's that starts at the last timestep, as
    Turbo's do.
    """
    if pipeline.kind not in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        return None
    if pipeline.config("unet").get("time_cond_proj_dim") is not None:
        return "its U-Net is told the guidance scale (time_cond_proj_dim), as LCM's is"
    config = pipeline.config("scheduler")
    part = pipeline.component("scheduler")
    kind = str(config.get("_class_name") or (part.kind if part else ""))
    if kind in ("LCMScheduler", "TCDScheduler"):
        return f"its {kind} is made for few steps"
    turbo = (
        kind in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
        and config.get("timestep_spacing") == "trailing"
        and config.get("prediction_type", "epsilon") == "epsilon"
        and not config.get("rescale_betas_zero_snr")
    )
    return (
        f"its {kind} with trailing timesteps is made for few steps, as Turbo's" if turbo else None
    )


def call_defaults(kind: str) -> dict[str, Any]:
    """The call's own arguments that are plain values, by name."""
    made = pipeline_class(kind)
    if made is None:
        raise AssetError(f"diffusers {diffusers.__version__} has no {kind}")
    plain = (bool, int, float, str, type(None))
    return {
        name: one.default
        for name, one in inspect.signature(made.__call__).parameters.items()
        if one.default is not one.empty and isinstance(one.default, plain)
    }


def describe(pipeline: PipelineFolder) -> Description:
    """What the folder's JSON and the call's signature say."""
    reason = why_not(pipeline.kind)
    if reason is not None:
        raise AssetError(f"{pipeline.path} is a {pipeline.kind}, {reason}; use another --backbone")
    defaults = call_defaults(pipeline.kind)
    steps, guidance = defaults["num_inference_steps"], defaults.get("guidance_scale")
    if not isinstance(steps, int) or not 1 <= steps <= 1000:
        raise AssetError(
            f"{pipeline.path} is a {pipeline.kind}, whose call has no default number of steps; "
            "use another --backbone"
        )
    sampling = SamplingConfig(
        steps=steps, guidance=1.0 if guidance is None else float(guidance), scheduler="own"
    )
    notes = [f"{pipeline.path.name} is called as a whole ({pipeline.kind})"]
    few = few_steps(pipeline)
    if few is not None:
        notes[0] += f": {few}; set --steps and --guidance as its authors do"
    facts = {"scheduler": str(pipeline.config("scheduler").get("_class_name", "none"))}
    if pipeline.component("safety_checker") is not None:
        facts["safety_checker"] = "not applied"
        notes.append(
            f"the safety checker of {pipeline.path.name} isn't applied: it would blacken images "
            "that are to be measured"
        )
    release = ".".join(diffusers.__version__.split(".")[:2])
    arguments = {name: value for name, value in defaults.items() if name not in PER_CALL}
    return Description(
        conditional=True,
        sampling=sampling,
        notes=tuple(notes),
        facts=facts,
        settings={"pipeline": pipeline.kind, "diffusers": release, "call": arguments},
    )


class BlackBox(Backbone):
    """A pipeline of which nothing but whole images is asked.

    Args:
        name: Its name.
        pipeline: Of diffusers.
        sha256: Hash of its weights.
        device: Where it is moved to.
        dtype: Format of its weights.
        network_batch: Images a call where it takes a generator for each; None: by their size.
    """

    conditional = True
    unet = None

    def __init__(
        self,
        name: str,
        pipeline: Any,
        *,
        sha256: str,
        device: torch.device,
        dtype: torch.dtype,
        network_batch: int | None,
    ) -> None:
        self.name, self.weights_sha256, self.device = name, sha256, device
        self._pipeline = pipeline.to(device, dtype)
        self._pipeline.set_progress_bar_config(disable=True)
        for part in self._pipeline.components.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        self.scheduler = getattr(pipeline, "scheduler", None)
        self._tokenizer = getattr(pipeline, "tokenizer", None)
        if self._tokenizer is not None:
            self.token_limit = int(self._tokenizer.model_max_length) - 2
        accepted = inspect.signature(type(pipeline).__call__).parameters
        self._guided = "guidance_scale" in accepted
        several = "list" in str(accepted["generator"].annotation).lower()
        self.image_size = _image_size(pipeline)
        asked = network_batch or default_network_batch(self.image_size)
        self.network_batch = asked if several else 1
        self.latent_shape = (3, self.image_size, self.image_size)

    def _whole(self) -> InputError:
        return InputError(
            f"{self.name} is called as a whole ({type(self._pipeline).__name__}), so that its "
            "single predictions, latents and networks can't be had; vanilla, prompt_append, "
            "fair_prompt and rejection work on it"
        )

    def make(
        self,
        texts: Sequence[str],
        generators: Sequence[torch.Generator],
        config: SamplingConfig,
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images of B prompts, one generator each, and network calls spent on each.

        Raises:
            InputError: If eta or guidance is asked of a call that has none, or images aren't
                finite numbers.
        """
        if config.eta:
            raise InputError(f"--eta: {self.name} is called as a whole and has none; leave it out")
        if not self._guided and config.guidance != 1:
            raise InputError(
                f"--guidance: the call of {self.name} has no guidance_scale; leave it out"
            )
        images, calls = [], []
        for start in range(0, len(texts), self.network_batch):
            part = slice(start, start + self.network_batch)
            made, rows = self._call(list(texts[part]), list(generators[part]), config)
            images.append(made)
            calls += [rows // self.network_batch] * len(made)
        return np.concatenate(images), np.array(calls, np.int64)

    def _call(
        self, texts: list[str], generators: list[torch.Generator], config: SamplingConfig
    ) -> tuple[NDArray[np.uint8], int]:
        own = len(texts)
        # Filled up, as network batches are: kernels round differently for another shape.
        for _ in range(self.network_batch - own):
            texts.append(texts[-1])
            generators.append(torch.Generator().manual_seed(0))
        options: dict[str, Any] = {"guidance_scale": config.guidance} if self._guided else {}
        with self._counted() as rows, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of diffusers, on settings that are the folder's
            made = self._pipeline(
                prompt=texts,
                generator=generators if len(generators) > 1 else generators[0],
                num_inference_steps=config.steps,
                output_type="np",
                **options,
            )
        images = np.asarray(made.images if hasattr(made, "images") else made[0])[:own]
        if not np.isfinite(images).all():
            raise InputError(
                f"images of {self.name} aren't finite numbers: guidance is too large, or "
                "--dtype float16 too narrow for it; lower --guidance or use --dtype float32"
            )
        return (images * 255).round().clip(0, 255).astype(np.uint8), sum(rows)

    @contextmanager
    def _counted(self) -> Iterator[list[int]]:
        """Rows of every call of the denoising networks."""
        rows: list[int] = []

        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = (*args, *kwargs.values())
            several = [
                x for x in given if isinstance(x, list) or (isinstance(x, Tensor) and x.ndim)
            ]
            rows.append(max(map(len, several), default=1))

        networks = [getattr(self._pipeline, name, None) for name in DENOISERS]
        handles = [
            network.register_forward_pre_hook(count, with_kwargs=True)
            for network in networks
            if isinstance(network, nn.Module)
        ]
        try:
            yield rows
        finally:
            for handle in handles:
                handle.remove()

    def tokens(self, text: str) -> list[str] | None:
        """The pieces that the first tokenizer splits `text` into; None without one."""
        return None if self._tokenizer is None else list(self._tokenizer.tokenize(text))

    def capability(self, kind: type[Capability]) -> Capability | None:
        """The whole call, nothing else."""
        found: Any = WholeCall(self.make) if kind is WholeCall else None
        return cast("Capability | None", found)

    @property
    def schedule(self) -> Schedule:  # type: ignore[override]
        """Not to be had."""
        raise self._whole()

    def encode(self, images: NDArray[np.uint8]) -> NoReturn:
        """Not to be had."""
        raise self._whole()

    def pixels(self, latents: Tensor) -> NoReturn:
        """Not to be had."""
        raise self._whole()

    def embed(self, prompts: Sequence[str]) -> NoReturn:
        """Not to be had."""
        raise self._whole()

    def _network(self, x_t: Tensor, t: Tensor, context: Tensor | None) -> NoReturn:
        raise self._whole()

    def with_unet(self, unet: nn.Module) -> NoReturn:
        """Not possible."""
        raise ContractError(str(self._whole()))

    def edit_bottleneck(self, edit: Edit) -> AbstractContextManager[None]:
        """Not possible."""
        raise self._whole()


def _image_size(pipeline: Any) -> int:
    """Pixels a side of the images that the call makes by default."""
    scale = int(getattr(pipeline, "vae_scale_factor", 8))
    for owner, attribute in (
        (pipeline, "default_sample_size"),
        (getattr(getattr(pipeline, "transformer", None), "config", None), "sample_size"),
        (getattr(getattr(pipeline, "unet", None), "config", None), "sample_size"),
    ):
        size = getattr(owner, attribute, None)
        if isinstance(size, int):
            return size * scale
    return 512


def load(
    name: str,
    folder: Path,
    *,
    sha256: str,
    device: torch.device,
    dtype: torch.dtype,
    network_batch: int | None,
) -> BlackBox:
    """Load every part of the folder but a safety checker."""
    return BlackBox(
        name,
        load_parts(name, folder),
        sha256=sha256,
        device=device,
        dtype=dtype,
        network_batch=network_batch,
    )


def claims(pipeline: PipelineFolder) -> bool:
    """Whether a Stable Diffusion folder is one for few steps, see :func:`few_steps`."""
    return few_steps(pipeline) is not None


FAMILY = Family(
    name="black_box",
    title="any other text-to-image pipeline, called as a whole (SD 3, FLUX, PixArt, Turbo, LCM)",
    pipelines=(),
    conditional=True,
    sampling=SamplingConfig(steps=50, guidance=1.0, scheduler="own"),
    load=load,
    capabilities=frozenset(),
    describe=describe,
    claims=claims,
    refuses=why_not,
)

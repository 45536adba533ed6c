"""Train ``cartoonfaces-ddpm``: ``python -m fairbench.build.train_ddpm OUT``.

A tiny but real unconditional pixel model: UNet2DModel and DDIM schedule in diffusers' folder
format, trained on the same biased images as ``cartoonfaces-sd``. A checkpoint is written every
minute; the same command resumes. With ``--start FOLDER`` a pipeline made before is trained
further.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import Tensor

from fairbench.build.training import (
    BATCH,
    SEED,
    TrainingRun,
    earlier_stages,
    training_set,
    velocity_loss,
    write_facts,
)


def scheduler() -> DDIMScheduler:
    """Linear betas as in DDPM; at the last step .6 % of the clean image is left."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=True,
        clip_sample_range=1.0,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )


def network() -> UNet2DModel:
    """Most of its work is done at 16 x 16 and below, where a CPU is quick."""
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(24, 48, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=8,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the pipeline; OUT.work: checkpoints")
    parser.add_argument("--steps", type=int, default=7500)
    parser.add_argument("--start", type=Path, help="pipeline folder to train further")
    arguments = parser.parse_args()
    work = arguments.out.with_suffix(".work")
    work.mkdir(parents=True, exist_ok=True)
    images, _ = training_set()
    torch.manual_seed(SEED)
    unet, schedule = network().to(memory_format=torch.channels_last), scheduler()
    command = f"fairbench.build.train_ddpm OUT --steps {arguments.steps}"
    lr = 1e-3
    if arguments.start is not None:
        unet.load_state_dict(DDIMPipeline.from_pretrained(arguments.start).unet.state_dict())
        command, lr = f"{command} --start FOLDER", 6e-4
    seed = SEED + len(earlier_stages(arguments.start))  # other draws than in the stages before
    run = TrainingRun(work / "unet.pt", unet, arguments.steps, lr=lr, decay=0.9995, seed=seed)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            predicted: Tensor = unet(x.to(memory_format=torch.channels_last), t).sample
        return predicted.float()

    def loss_of(rng: np.random.Generator) -> Tensor:
        clean = images[rng.choice(len(images), BATCH, replace=False)]
        return velocity_loss(velocity, clean, schedule, rng)

    unet.train()
    run.train(loss_of)
    unet.eval().to(memory_format=torch.contiguous_format)
    DDIMPipeline(unet, schedule).save_pretrained(arguments.out, safe_serialization=True)
    facts = {"clipping": "consistent"}  # noise and clipped clean image go on to add up
    write_facts(arguments.out, command, run.elapsed, facts, arguments.start)


if __name__ == "__main__":
    main()

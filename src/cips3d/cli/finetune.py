"""`cips3d finetune`: a trained model's heads in the look of another set of pictures (paper Section 4.4)."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from cips3d import pretrained
from cips3d.cli.options import Derived, Settings, at_least, check_finite, check_seed
from cips3d.cli.train import print_outcome, train_here
from cips3d.configuration import with_settings
from cips3d.errors import UserError
from cips3d.training.presets import transfer


def finetune(
    model: str,
    run_dir: Path,
    /,
    data: str,
    kimg: float = 30.0,
    batch: Derived[int] = None,
    augment: Derived[float] = None,
    freeze_d: int = 0,
    preset: Derived[str] = None,
    seed: int = 0,
    set: Settings = (),
    processes: Derived[int] = None,
) -> None:
    """Teach a model the look of other pictures; a few hundred are enough. Shape and pose stay as they are, to the bit.

    Radiance field and shape mapping are frozen; implicit network, appearance mapping and discriminator train. The result can
    be blended with the model it came from (`cips3d blend`). `cips3d train RUN-DIR` resumes a run that was interrupted.

    Args:
        model: "heads" (comes with the package), a .safetensors model, a folder in the hub's form, or a hub id.
        run_dir: new folder for the run, as `cips3d train` writes it.
        data: folder or zip of the new pictures, or "heads-cartoon".
        kimg: length, thousands of real pictures shown.
        batch: pictures per step. Default: the preset's.
        augment: probability of DiffAugment, 0 to 1. Default: it adapts itself (StyleGAN2-ADA).
        freeze_d: so many of the discriminator's blocks, from the picture on, keep their weights (FreezeD); only where the model
            came with its discriminators.
        preset: whose rates and discriminators are taken. Default: the one that has the model's networks.
        seed: of all draws.
        set: any other setting of the configuration; docs/training.md explains the usual ones, a run's config.json names
            all.
        processes: that share each batch on this machine's CPU. Default: one per core, if the batch divides and each gets 4
            pictures or more; one where there is a GPU.
    """
    check_finite(kimg=kimg)
    at_least(1, batch=batch, processes=processes)
    check_seed(seed)
    if augment is not None and not 0 <= augment <= 1:
        raise UserError(f"--augment: {augment}; give a probability from 0 to 1")
    if (
        os.environ.get("RANK", "0") == "0" and (run_dir / "config.json").exists()
    ):  # which others may find the first one's
        raise UserError(
            f"{run_dir}: already holds a run; resume it with cips3d train {run_dir}, or give another folder"
        )
    generator = pretrained.load(model)
    discriminators = pretrained.load_discriminators(model)
    if freeze_d and discriminators is None:
        raise UserError(
            "--freeze-d: this model came without its discriminators, and new ones must train; leave it out"
        )
    config = transfer(generator.config, model, data, discriminators, kimg, preset)
    (stage,) = config.stages
    stage = replace(stage, batch=batch or stage.batch, augment=augment or 0.0)
    config = replace(
        config, stages=(stage,), seed=seed, frozen_discriminator_blocks=freeze_d,
        augment_target=config.augment_target if augment is None else None,
    )  # fmt: skip
    config = with_settings(config, set, "--set")
    print_outcome(train_here(config, run_dir, processes), run_dir)

"""`cips3d train`: starts a training run from a preset, or resumes one."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import OmitArgPrefixes

from cips3d.cli.options import Data, Derived, Limited, Preset, RunOptions, Seed


def train(
    run_dir: Path,
    /,
    run: OmitArgPrefixes[RunOptions],
    preset: Derived[Preset] = None,
    data: Derived[Data] = None,
    kimg: Derived[Limited] = None,
    minutes: Derived[Limited] = None,
    seed: Derived[Seed] = None,
) -> None:
    """Train a generator, or resume a run.

    Without options, a run in RUN-DIR is resumed from its newest checkpoint with its own
    configuration: bit-exactly on CPUs with the same number of processes; with the same data and
    random numbers on GPUs of the same kind. `accelerate launch -m cips3d train …` runs the same
    command on several GPUs and machines.

    Args:
        run_dir: Folder for config.json, log.jsonl, samples, checkpoints, TensorBoard events and
            model.safetensors, which includes the discriminators.
        preset: Starting configuration: heads-32 or heads-64 (for a laptop's CPU); ffhq-64, -128,
            -256, -512, -1024 (the authors' released settings, eight GPUs); ffhq-512-paper (the
            paper's text); afhq-cats-256; table-2-direction, -fixed, -learned, -full (the paper's
            ablations); heads-32-pi-gan, -cips-2d (baselines). Default: heads-32 for a new run.
        data: "heads", "heads-cartoon", or a folder or zip of images. Default: the preset's.
        kimg: Length of the last stage in thousands of real images shown. Default: the preset's.
        minutes: Length of the whole run; each stage takes its share.
        seed: Seed of the initial weights and all random numbers. Default: the preset's.

    Examples:
        cips3d train runs/heads --preset heads-64
        cips3d train runs/mine --data photos.zip --preset ffhq-256
    """
    from cips3d.cli.running import new_config, print_outcome, resumed_config, train_here

    given = (preset, data, kimg, minutes, seed, run.batch, run.set or None)
    if (run_dir / "config.json").exists() and all(value is None for value in given):
        config = resumed_config(run_dir)
    else:
        config = new_config(preset or "heads-32", data, kimg, minutes, seed, run)
    print_outcome(train_here(config, run_dir, run.processes), run_dir)

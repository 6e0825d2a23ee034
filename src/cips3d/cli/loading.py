"""From options to what the library takes: a model on its device, codes, a resolution."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cips3d import pretrained
from cips3d.cli.options import DEFAULT_SIDE, RandomSubjects, Subjects
from cips3d.editing.subject import Subject
from cips3d.errors import UserError, first_line
from cips3d.models.protocol import ImageGenerator, RayGenerator
from cips3d.models.types import Latents, Psi, Styles


def load_model(name: str, device: str) -> ImageGenerator:
    """`cips3d.load` onto a device."""
    return to_device(pretrained.load(name), device)


def to_device(generator: ImageGenerator, device: str) -> ImageGenerator:
    """The generator on the named device; "auto" takes the fastest."""
    if device == "auto":  # not what torch was built for, but what is there
        found = torch.accelerator.current_accelerator(check_available=True)
        device = "cpu" if found is None else found.type
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it computes nothing")
        return generator.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {device}: {first_line(error)}; try cpu or auto") from None


def latents_of(generator: ImageGenerator, seeds: list[int]) -> Latents:
    """The first subject of each seed."""
    return Latents.cat([generator.sample_latents(1, seed) for seed in seeds])


def random_latents(
    generator: ImageGenerator, options: RandomSubjects, model: str, count: int
) -> Latents:
    """The latents of `count` subjects."""
    return latents_of(generator, options.seeds(model, count))


def codes_of(
    generator: ImageGenerator, options: Subjects, model: str, count: int
) -> Latents | Styles:
    """A file's subject as truncated styles; without one latents of random subjects."""
    if options.subject is None:
        return random_latents(generator, options, model, count)
    return subject_styles(generator, options.subject, options.psi)


def styles_of(generator: ImageGenerator, options: Subjects, model: str, count: int) -> Styles:
    """`codes_of`, mapped and truncated."""
    codes = codes_of(generator, options, model, count)
    return codes if isinstance(codes, Styles) else generator.map(codes, options.truncation)


def subject_styles(generator: ImageGenerator, path: Path, psi: Psi | None) -> Styles:
    """The styles of a subject file, truncated only if ψ is given.

    Raises:
        UserError: if the file cannot be read or belongs to another model.
    """
    styles = Subject.load(path, generator).styles
    return styles if psi is None else generator.truncate(styles, psi)


def joined(first: Styles, others: Styles) -> Styles:
    """A subject with one appearance or one per block, and others with one for all blocks."""
    if isinstance(first.appearance, Tensor):
        return Styles.cat([first, others])
    assert isinstance(others.appearance, Tensor)
    blocks = [torch.cat([own, others.appearance]) for own in first.appearance]
    return Styles(torch.cat([first.shape, others.shape]), blocks)


def side_of(generator: ImageGenerator, given: int | None) -> int:
    """The given side of an image, or the default for this generator."""
    own = generator.config.resolution
    if given is not None:
        return given
    return max(DEFAULT_SIDE, own) if isinstance(generator, RayGenerator) else own


def resolution_of(
    generator: ImageGenerator, given: int | tuple[int, int] | None
) -> int | tuple[int, int]:
    """`side_of`, where (height, width) may be given too."""
    return given if isinstance(given, tuple) else side_of(generator, given)

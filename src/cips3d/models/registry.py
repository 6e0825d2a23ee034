"""All architectures by name. A new one is a file in `models/peers` and a line here."""

from __future__ import annotations

from cips3d.errors import UserError
from cips3d.models.config import GeneratorConfig
from cips3d.models.generator import Generator
from cips3d.models.peers.cips import Cips2d
from cips3d.models.peers.pi_gan import PiGan
from cips3d.models.protocol import ImageGenerator

GENERATORS: dict[str, type[ImageGenerator]] = {
    "cips-3d": Generator,
    "pi-gan": PiGan,
    "cips-2d": Cips2d,
}
#: Parts of all generators. A training stage can freeze them.
PARTS = tuple(dict.fromkeys(part for kind in GENERATORS.values() for part in kind.parts))


def generator_class(architecture: str) -> type[ImageGenerator]:
    """The class of an architecture; raises UserError if there is none of that name."""
    if architecture not in GENERATORS:
        raise UserError(
            f"architecture: {architecture} is unknown; choose one of {', '.join(GENERATORS)}"
        )
    return GENERATORS[architecture]


def build_generator(config: GeneratorConfig) -> ImageGenerator:
    """A new generator with random weights."""
    return generator_class(config.networks.architecture)(config)

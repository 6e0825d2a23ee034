"""Random traits of heads, drawn from (seed, index, name) before any shape is built."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

HAIR_STYLES = ("bald", "short", "long", "bob", "bun", "curly", "ponytail")
HATS = ("none", "beanie", "cap", "brimmed")
BEARDS = ("none", "moustache", "full", "stubble", "goatee")
MOUTHS = ("neutral", "smile", "grin", "surprised")
COLLARS = ("crew", "turtleneck", "lapels", "scarf")
#: Names of the kinds that an attribute numbers.
OPTIONS = {
    "hair_style": HAIR_STYLES, "hat": HATS, "beard": BEARDS, "mouth": MOUTHS, "collar": COLLARS
}  # fmt: skip

# Colours in [0, 1].
_SKINS = [
    (0.99, 0.87, 0.79), (0.97, 0.80, 0.69), (0.93, 0.73, 0.58), (0.85, 0.63, 0.47),
    (0.72, 0.50, 0.36), (0.57, 0.38, 0.27), (0.43, 0.28, 0.20), (0.32, 0.21, 0.16),
]  # fmt: skip
_HAIRS = [
    (0.10, 0.09, 0.10), (0.20, 0.13, 0.10), (0.34, 0.21, 0.13), (0.50, 0.31, 0.17),
    (0.62, 0.25, 0.11), (0.80, 0.44, 0.17), (0.90, 0.72, 0.38), (0.95, 0.85, 0.58),
    (0.62, 0.62, 0.64), (0.90, 0.90, 0.91), (0.93, 0.45, 0.62), (0.30, 0.48, 0.82),
    (0.28, 0.66, 0.56), (0.58, 0.38, 0.74),
]  # fmt: skip
_HAIR_ODDS = [15, 15, 14, 10, 6, 7, 9, 6, 5, 4, 2.5, 2.5, 2, 2]
_IRISES = [
    (0.36, 0.22, 0.12), (0.48, 0.33, 0.15), (0.30, 0.45, 0.25), (0.25, 0.47, 0.70),
    (0.42, 0.52, 0.58), (0.20, 0.55, 0.52),
]  # fmt: skip
_IRIS_ODDS = [34, 18, 14, 18, 9, 7]


class Draws:
    """Independent uniform draws for a batch of heads, each a hash of (seed, index, name).

    Draws are named, not sequential, so that a new trait leaves all others unchanged.
    """

    def __init__(self, seed: int, indices: np.ndarray):
        base = np.random.SeedSequence(seed).generate_state(1, np.uint64)
        self._keys = _mixed(_mixed(base) ^ _mixed(indices.astype(np.uint64)))

    def __len__(self) -> int:
        return len(self._keys)

    def __call__(
        self, name: str, low: float | np.ndarray = 0.0, high: float | np.ndarray = 1.0
    ) -> np.ndarray:
        """(B,) uniform draws in [low, high)."""
        offset = zlib.crc32(name.encode()) * 0x9E3779B97F4A7C15 % 2**64
        bits = _mixed(self._keys + np.uint64(offset))
        return low + (high - low) * ((bits >> np.uint64(11)) * 2.0**-53)

    def chance(self, name: str, probability: float | np.ndarray) -> np.ndarray:
        """(B,) booleans that are True with the given probability."""
        return self(name) < probability

    def choice(self, name: str, odds: Sequence[float]) -> np.ndarray:
        """(B,) numbers of options, drawn with the given odds."""
        edges = np.cumsum(np.asarray(odds, dtype=np.float64) / np.sum(odds))
        return np.minimum(np.searchsorted(edges, self(name), side="right"), len(odds) - 1)

    def normal(self, name: str) -> np.ndarray:
        """(B,) standard normal draws."""
        radius = np.sqrt(-2 * np.log1p(-self(name + " radius")))
        return radius * np.cos(2 * np.pi * self(name + " angle"))


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64, a bijection that makes neighbouring numbers look unrelated."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Traits:
    """Traits of a batch of heads: (B,) kinds, numbers into `OPTIONS`, and (B, 3) colours."""

    hair_style: np.ndarray
    bangs_side: np.ndarray  # -1, 0 (none) or +1: sign of x where the fringe covers the forehead
    hat: np.ndarray
    beard: np.ndarray
    mouth: np.ndarray
    collar: np.ndarray
    glasses: np.ndarray  # bool
    sunglasses: np.ndarray  # bool, only with glasses
    ears_covered: np.ndarray  # bool, by long hair or a bob
    earring_side: np.ndarray  # -1, 0 (none) or +1
    skin_color: np.ndarray
    hair_color: np.ndarray  # also of brows and beard; set for bald heads too
    eye_color: np.ndarray
    lip_color: np.ndarray
    hat_color: np.ndarray  # set without a hat too
    cloth_color: np.ndarray
    trim_color: np.ndarray  # collar, stripes, hat band
    background: np.ndarray

    def coloured_as(self, others: Traits) -> Traits:
        """These heads in the colours of others, background included."""
        names = [name for name in vars(self) if name.endswith("_color") or name == "background"]
        return replace(self, **{name: getattr(others, name) for name in names})


def draw_traits(draw: Draws) -> Traits:
    """Draws the traits of a batch of heads."""
    hair_style = draw.choice("hair style", [8, 24, 19, 15, 11, 12, 11])
    side = np.where(draw.chance("bangs to the right", 0.5), 1, -1)
    has_bangs = (hair_style != 0) & draw.chance("bangs", 0.8)
    short = (hair_style <= 1) | (hair_style == 5)
    bearded = draw.chance("beard", np.where(short, 0.48, 0.08))
    glasses = draw.chance("glasses", 0.24)
    ears_covered = (hair_style == 2) | (hair_style == 3)
    earring = draw.chance("earring", 0.2) & ~ears_covered
    red = 1 + 0.04 * (draw("skin red") - 0.5)[:, None] * [1, 0, -1]
    skin = _along(_SKINS, draw("skin tone")) * red
    hair = np.asarray(_HAIRS)[draw.choice("hair colour", _HAIR_ODDS)]
    hair = hair * draw("hair light", 0.85, 1.15)[:, None]
    lip = 0.62 * skin * [1.0, 0.72, 0.72] + 0.38 * np.asarray((0.80, 0.28, 0.32))
    lipstick = draw.chance("lipstick", 0.22)[:, None]
    return Traits(
        hair_style=hair_style,
        bangs_side=np.where(has_bangs, side, 0),
        hat=np.where(draw.chance("hat", 0.22), 1 + draw.choice("hat kind", [40, 34, 26]), 0),
        beard=np.where(bearded, 1 + draw.choice("beard kind", [20, 40, 22, 18]), 0),
        mouth=draw.choice("mouth", [38, 36, 18, 8]),
        collar=draw.choice("collar", [40, 18, 28, 14]),
        glasses=glasses,
        sunglasses=glasses & draw.chance("sunglasses", 0.2),
        ears_covered=ears_covered,
        earring_side=np.where(earring, np.where(draw.chance("earring right", 0.5), 1, -1), 0),
        skin_color=np.minimum(skin, 1.0),
        hair_color=np.minimum(hair, 1.0),
        eye_color=np.asarray(_IRISES)[draw.choice("iris", _IRIS_ODDS)],
        lip_color=np.where(lipstick, 0.35 * skin + 0.65 * np.asarray((0.75, 0.12, 0.22)), lip),
        hat_color=_drawn_color(draw, "hat", (0.15, 0.85), (0.3, 0.95)),
        cloth_color=_drawn_color(draw, "cloth", (0.1, 0.8), (0.22, 0.95)),
        trim_color=_drawn_color(draw, "trim", (0.0, 0.8), (0.35, 1.0)),
        background=_drawn_color(draw, "background", (0.05, 0.5), (0.45, 1.0)),
    )


def _along(colors: list[tuple[float, float, float]], u: np.ndarray) -> np.ndarray:
    """(B, 3) colours at u in [0, 1) along a polyline through `colors`."""
    table = np.asarray(colors)
    place = u * (len(table) - 1)
    first = place.astype(np.int64)
    weight = (place - first)[:, None]
    return table[first] * (1 - weight) + table[first + 1] * weight


def _drawn_color(
    draw: Draws, name: str, saturation: tuple[float, float], light: tuple[float, float]
) -> np.ndarray:
    """(B, 3) colours of any hue, with saturation and value (of HSV) in these ranges."""
    hue, saturations = draw(f"{name} hue"), draw(f"{name} saturation", *saturation)
    k = (np.asarray([5.0, 3.0, 1.0]) + 6.0 * hue[:, None]) % 6.0
    shade = 1 - saturations[:, None] * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0)
    return draw(f"{name} light", *light)[:, None] * shade

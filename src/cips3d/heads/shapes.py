"""The parts and skin tints of a batch of heads, which are made of ellipsoids.

Lengths are in hundredths of a world unit: a head is about 14 high, and its face, at the origin, 9
wide. The face looks towards +z; y is up. See `PartList` for numbers that are arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cips3d.heads import raycast as rc
from cips3d.heads.parts import Number, PartList, Triple
from cips3d.heads.traits import Draws, Traits

_FAR = 1e3  # open end of a slab
_SIDES = np.array([[-1.0], [1.0]])  # multiplies x to make a pair of parts, at -x and +x


class Proportions:
    """Random sizes that several parts of a head share."""

    def __init__(self, draw: Draws):
        fat = draw("fat")
        width, height = draw("skull width", 4.65, 5.25), draw("skull height", 5.2, 5.75)
        self.skull = (width, height, draw("skull depth", 5.3, 5.8))
        self.skull_center = (0.0, 1.6, -0.9)
        width, height = 3.45 + 0.75 * fat + draw("jaw", -0.2, 0.2), draw("jaw height", 4.1, 4.65)
        self.jaw = (width, height, 4.05 + 0.2 * fat)
        self.jaw_center = (0.0, -2.1, 0.4)
        self.cheek = 1.6 + 0.5 * fat
        self.cheek_x = draw("cheek place", 2.2, 2.6)
        self.eye_x = draw("eye distance", 1.75, 2.05)
        self.eye_y = draw("eye height", 0.1, 0.6)
        self.eye = draw("eye size", 0.92, 1.28)
        self.mouth_y = draw("mouth height", -3.75, -3.3)
        self.nose = draw("nose size", 0.8, 1.25)
        self.nose_y = draw("nose height", -1.6, -1.1)
        self.hair = draw("hair volume", 0.35, 0.75)  # thickness on the skull
        self.nose_z = self.surface(0.0, self.nose_y) + 0.35 * self.nose
        self.eye_z = self.surface(self.eye_x, self.eye_y)
        self.mouth_z = self.surface(0.0, self.mouth_y)

    def surface(self, x: Number, y: Number) -> np.ndarray:
        """The z coordinate of the front of the bare face at (x, y)."""
        cheek = (self.cheek_x, -1.3, 2.2), (self.cheek, self.cheek, self.cheek)
        heights = []
        for center, radii in ((self.skull_center, self.skull), (self.jaw_center, self.jaw), cheek):
            across, up = (np.abs(x) - center[0]) / radii[0], (y - center[1]) / radii[1]
            square = np.maximum(1 - np.square(across) - np.square(up), 0.0)
            heights.append(center[2] + radii[2] * np.sqrt(square))
        return np.maximum(np.maximum(heights[0], heights[1]), heights[2])


def head_parts(draw: Draws, traits: Traits) -> tuple[np.ndarray, np.ndarray]:
    """Parts (B, P, PART_COLUMNS) and tints (B, T, TINT_COLUMNS) of heads, float64, world units."""
    parts, size = PartList(len(draw)), Proportions(draw)
    for add in (
        _add_skull, _add_tints, _add_eyes, _add_mouth, _add_beard, _add_hair, _add_curls,
        _add_hat, _add_glasses, _add_clothes,
    ):  # fmt: skip
        add(parts, draw, traits, size)
    return parts.tables()


def _grown(radii: Triple, by: Number) -> Triple:
    return radii[0] + by, radii[1] + by, radii[2] + by


# One statement per part reads as a table.
# fmt: off
def _add_skull(parts: PartList, draw: Draws, traits: Traits, size: Proportions) -> None:
    skin, label, y = traits.skin_color, rc.SKIN_LABEL, size.nose_y
    flesh: dict[str, Any] = {"material": rc.SKIN, "soft": 1}
    parts.add(label, size.skull_center, size.skull, skin, **flesh)
    parts.add(label, size.jaw_center, size.jaw, skin, **flesh)
    parts.add(label, (0.0, -5.3, 2.5), (draw("chin", 1.2, 1.9), 1.2, 1.45), skin, **flesh)
    parts.add(label, (0.0, -8.0, -1.3), (2.2, 5.5, 2.3), skin, **flesh)
    parts.add(label, (_SIDES * size.cheek_x, -1.3, 2.2), (size.cheek, size.cheek, size.cheek), skin,
              **flesh)
    parts.add(label, (0.0, y + 1.1, size.nose_z - 0.45), (0.5, 1.7, 0.8), skin, tilt=-0.12, **flesh)
    parts.add(label, (0.0, y, size.nose_z), (0.72 * size.nose, 0.62 * size.nose, 0.8 * size.nose),
              skin, **flesh)
    parts.add(label, (_SIDES * 0.55 * size.nose, y - 0.12, size.nose_z - 0.4), (0.45, 0.42, 0.55),
              skin, **flesh)
    ear, x = draw("ear size", 0.85, 1.2), size.skull[0] + 0.05
    bare = ~traits.ears_covered
    lean: dict[str, Any] = {"tilt": 0.15, "roll": -0.15 * _SIDES}
    parts.add(label, (_SIDES * x, -0.3, -0.7), (0.55, 1.5 * ear, 0.95 * ear), skin, present=bare,
              **flesh, **lean)
    shade = 0.82 * skin * [1.0, 0.9, 0.88]
    parts.add(label, (_SIDES * (x + 0.3), -0.2, -0.35), (0.4, 1.0 * ear, 0.55 * ear), shade,
              present=bare, **lean)
    ring = (traits.earring_side * (x + 0.3), -2.0, -0.4)
    parts.add(label, ring, (0.42, 0.5, 0.42), np.array((0.95, 0.8, 0.35)), rc.GLOSSY,
              traits.earring_side != 0)


def _add_tints(parts: PartList, draw: Draws, traits: Traits, size: Proportions) -> None:
    """Rosy cheeks and nose, stubble, and shade in the eye sockets and under the chin."""
    skin, rose = traits.skin_color, np.array((0.92, 0.36, 0.34))
    parts.tint((_SIDES * 2.7, -1.5, 3.6), 1.9, 0.55 * skin + 0.45 * rose, draw("blush", 0.15, 0.75))
    parts.tint((_SIDES * size.eye_x, size.eye_y, size.eye_z), 1.7, skin * [0.78, 0.70, 0.69], 0.55)
    parts.tint((0.0, size.nose_y, size.nose_z + 0.5), 1.1, 0.7 * skin + 0.3 * rose, 0.7)
    parts.tint((0.0, -7.2, 0.6), 3.2, skin * [0.60, 0.52, 0.50], 0.95)
    parts.tint((0.0, -4.6, 3.3), 3.4, 0.55 * skin + 0.45 * traits.hair_color,
              np.where(traits.beard == 3, 1.0, 0.0))


def _add_eyes(parts: PartList, draw: Draws, traits: Traits, size: Proportions) -> None:
    x, y, z = center = (_SIDES * size.eye_x, size.eye_y, size.eye_z - 0.42)
    radii = (1.06 * size.eye, 1.1 * size.eye, 0.95)
    gaze = draw("gaze sideways", -0.14, 0.14), draw("gaze upward", -0.1, 0.1)
    parts.add(rc.EYE_LABEL, center, radii, np.array((0.97, 0.97, 0.97)), rc.EYE,
              color2=traits.eye_color, detail=gaze)
    cut = (0.0, 0.94, -0.34)
    edge = 0.94 * y - 0.34 * z + draw("eye openness", 0.05, 0.6) * size.eye
    parts.add(rc.SKIN_LABEL, center, _grown(radii, 0.09), 0.93 * traits.skin_color, rc.SKIN,
              slab=(cut, edge, _FAR))
    lash = np.array((0.13, 0.09, 0.09))
    parts.add(rc.EYE_LABEL, center, _grown(radii, 0.15), lash, slab=(cut, edge - 0.1, edge + 0.12))
    brow = (x + 0.1 * _SIDES, y + 1.1 * size.eye + 0.75 + draw("brow lift", 0.0, 0.5))
    parts.add(rc.BROW_LABEL, (*brow, size.surface(*brow) - 0.02),
              (1.15, draw("brow thickness", 0.24, 0.46), 0.34), 0.75 * traits.hair_color, tilt=-0.1,
              roll=-_SIDES * draw("brow slope", -0.18, 0.3))


def _add_mouth(parts: PartList, draw: Draws, traits: Traits, size: Proportions) -> None:
    y, z, wide, lip = size.mouth_y, size.mouth_z, draw("mouth width", 1.15, 1.6), traits.lip_color
    dark, teeth = np.array((0.36, 0.10, 0.11)), np.array((0.97, 0.96, 0.93))
    neutral, smile, grin, surprised = (traits.mouth == kind for kind in range(4))
    label, full = rc.MOUTH_LABEL, draw("lips", 0.24, 0.4)
    parts.add(label, (_SIDES * 0.42 * wide, y + 0.16, z - 0.15), (0.64 * wide, 0.8 * full, 0.42),
              0.92 * lip, present=neutral, roll=-_SIDES * 0.12)
    parts.add(label, (0.0, y - 0.24, z - 0.14), (0.8 * wide, full, 0.5), lip, present=neutral)
    # a smile: an ellipsoid from which a higher one is carved out
    parts.add(label, (0.0, y + 0.3, z - 0.5), (1.15 * wide, 0.78, 0.95), 0.8 * lip, present=smile,
              carve=((0.0, y + 1.5, z), (1.75 * wide, 1.55, 3.0)))
    level, deep = (0.0, 1.0, 0.0), z - 0.55
    parts.add(label, (0.0, y + 0.45, deep), (1.2 * wide, 1.3, 0.95), lip, present=grin,
              slab=(level, -_FAR, y + 0.38))
    parts.add(label, (0.0, y + 0.42, deep), (1.08 * wide, 1.1, 1.06), dark, present=grin,
              slab=(level, -_FAR, y + 0.3))
    parts.add(label, (0.0, y + 0.42, deep), (1.02 * wide, 1.0, 1.12), teeth, present=grin,
              slab=(level, y - 0.1, y + 0.28))
    parts.add(label, (0.0, y, deep), (0.62, 0.72, 0.9), lip, present=surprised)
    parts.add(label, (0.0, y, deep), (0.42, 0.52, 1.0), dark, present=surprised)


def _strands(color: np.ndarray, count: Number, strength: Number) -> dict[str, Any]:
    lighter = np.minimum(1.45 * color + 0.05, 1.0)
    return {"material": rc.STRANDS, "color2": lighter, "detail": (count, strength)}


def _add_beard(parts: PartList, draw: Draws, traits: Traits, size: Proportions) -> None:
    y, z, label, kind = size.mouth_y, size.mouth_z, rc.BEARD_LABEL, traits.beard
    color = 0.9 * traits.hair_color
    strands = _strands(color, 26.0, 0.35)
    parts.add(label, (_SIDES * 0.75, y + 0.78, z - 0.05), (0.95, 0.33, 0.45), color,
              present=(kind > 0) & (kind != 3), roll=-_SIDES * 0.25, **strands)
    full = (size.jaw[0] + 0.3, size.jaw[1] + draw("beard length", 0.2, 1.3), size.jaw[2] + 0.35)
    parts.add(label, size.jaw_center, full, color, present=kind == 2,
              slab=((0.0, 0.85, 0.53), -_FAR, draw("beard line", -1.1, -0.3)),
              carve=((0.0, y + 0.1, z + 0.6), (1.75, 0.95, 2.6)), **strands)
    parts.add(label, (0.0, -5.6, 3.0), (1.35, 1.4, 1.35), color, present=kind == 4, **strands)


def _add_hair(parts: PartList, draw: Draws, traits: Traits, size: Proportions) -> None:
    color, label, side, width = traits.hair_color, rc.HAIR_LABEL, traits.bangs_side, size.skull[0]
    _, short, long, bob, bun, _, tail = (traits.hair_style == kind for kind in range(7))
    hatless = traits.hat == 0
    strands = _strands(color, draw("strands", 11.0, 17.0), draw("streaks", 0.25, 0.6))
    # a cap above a line that rises from the nape to the temple, with an opening for the face
    crown = (0.0, size.skull_center[1] + 0.15, size.skull_center[2] - 0.1)
    parts.add(label, crown, _grown(size.skull, size.hair), color, present=traits.hair_style > 0,
              slab=((0.0, 0.8, -0.6), -0.6, _FAR),
              carve=((0.0, -0.2, 6.5), (width - 0.5, draw("hairline", 4.9, 5.5), 6.6)), **strands)
    # bangs: a cap whose opening is moved to one side, so that its edge sweeps across the forehead
    parts.add(label, crown, _grown(size.skull, size.hair + 0.22), color, present=side != 0,
              slab=((0.0, 0.9, -0.436), 0.1, _FAR),
              carve=((-2.0 * side, -1.6, 7.0), (4.9, draw("fringe height", 5.2, 5.9), 9.0)),
              **strands)
    # long hair and bob: a volume behind the face, with curtains beside it
    wide = width + draw("curtain width", 0.8, 1.4)
    parts.add(label, (0.0, -1.6, -2.3), (wide, draw("hair length", 7.6, 8.8), 5.2), color,
              present=long, slab=((0.0, 0.0, 1.0), -_FAR, draw("curtain front", 0.4, 1.8)),
              carve=((0.0, -4.5, 4.5), (width - 0.1, 10.0, 6.4)), **strands)
    bob_top = np.where(hatless, _FAR, 3.0)
    parts.add(label, (0.0, 0.1, -1.4), (wide + 0.2, 6.9, 5.9), color, present=bob,
              slab=((0.0, 0.97, 0.243), draw("bob length", -5.0, -3.0), bob_top),
              carve=((0.0, -1.6, 7.0), (width - 0.3, 6.4, 7.2)), **strands)
    quiff = short & hatless & draw.chance("quiff", 0.5)
    parts.add(label, (0.9 * side, 6.2, 2.0), (3.0, 1.3, 2.3), color, present=quiff, tilt=-0.35,
              roll=0.15 * side, **strands)
    low = draw.chance("low bun", 0.4) | ~hatless
    parts.add(label, (0.0, np.where(low, 2.0, 7.6), np.where(low, -7.3, -2.4)), (2.1, 1.9, 2.0),
              color, present=bun, **strands)
    swing = np.where(draw.chance("tail right", 0.5), 1.0, -1.0)
    x = swing * draw("tail swing", 1.0, 3.2)
    parts.add(label, (0.4 * x, 2.6, -7.0), (1.1, 1.1, 1.2), traits.trim_color, present=tail)
    parts.add(label, (x, -1.4, -7.5), (1.6, 4.6, 1.5), color, present=tail, roll=0.22 * swing,
              tilt=-0.1, **strands)


def _add_curls(parts: PartList, draw: Draws, traits: Traits, size: Proportions) -> None:
    """Curls along a spiral down from the crown, over the scalp and part of the forehead."""
    number = np.arange(30)[:, None]
    up = 0.96 - 1.25 * number / 30
    angle = draw("curl turn", 0.0, 6.28) + 2.39996 * number
    flat = np.sqrt(1 - up * up)
    x, z = flat * np.sin(angle), flat * np.cos(angle)
    on_face = (z > 0.35) & (up < 0.62 - 0.3 * traits.bangs_side * x)
    under_hat = (traits.hat != 0) & (up > -0.05)
    width, height, depth = size.skull
    center = (x * (width + 0.2), 1.7 + up * (height + 0.2), -1.0 + z * (depth + 0.1))
    shade = np.array([0.88, 1.06, 1.0])[number % 3, None] * traits.hair_color
    curl = draw("curl size", 1.5, 1.95)
    parts.add(rc.HAIR_LABEL, center, (curl, curl, curl), shade,
              present=(traits.hair_style == 5) & ~on_face & ~under_hat)


def _add_hat(parts: PartList, draw: Draws, traits: Traits, size: Proportions) -> None:
    label, color, trim = rc.HAT_LABEL, traits.hat_color, traits.trim_color
    _, beanie, cap, brimmed = (traits.hat == kind for kind in range(4))
    center, snug, edge = (0.0, 1.9, -0.9), (0.0, 0.93, -0.367), 0.93 * 3.2
    dome = _grown(size.skull, size.hair + 0.4)
    knit = {"material": rc.STRANDS, "detail": (16.0, 0.9), "color2": 0.8 * color}
    parts.add(label, center, _grown(dome, 0.15), color, present=beanie, slab=(snug, edge, _FAR),
              **knit)
    knit = {"material": rc.STRANDS, "detail": (20.0, 0.9), "color2": 0.8 * trim}
    parts.add(label, center, _grown(dome, 0.42), trim, present=beanie,
              slab=(snug, edge - 0.3, edge + 1.3), **knit)
    parts.add(label, (0.0, 8.7, -1.0), (1.3, 1.2, 1.3), trim,
              present=beanie & draw.chance("pompom", 0.5))
    parts.add(label, center, dome, color, present=cap | brimmed, slab=(snug, edge, _FAR))
    parts.add(label, center, _grown(dome, 0.1), trim, present=brimmed,
              slab=(snug, edge, edge + 1.0))
    parts.add(label, (0.0, 4.85, 4.1), (3.9, 0.45, 5.0), 0.8 * color, present=cap, tilt=0.16,
              slab=((0.0, 0.0, 1.0), 2.0, _FAR))
    parts.add(label, (0.0, 2.1 + dome[1], -0.9), (0.55, 0.4, 0.55), trim, present=cap)
    parts.add(label, (0.0, 3.0, -0.7), (8.2, 0.6, 8.0), color, present=brimmed, tilt=-0.375)


def _add_glasses(parts: PartList, _: Draws, traits: Traits, size: Proportions) -> None:
    frame = np.where(traits.sunglasses[:, None], 0.12, 0.25 * traits.trim_color + 0.05)
    label, y, z = rc.GLASSES_LABEL, size.eye_y, size.eye_z + 0.85
    radius = np.minimum(1.62, size.eye_x - 0.22)
    center = (_SIDES * size.eye_x, y, z)
    parts.add(label, center, (radius, radius, 0.42), frame, rc.GLOSSY,
              traits.glasses & ~traits.sunglasses,
              carve=(center, (0.84 * radius, 0.84 * radius, 9.0)))
    parts.add(label, center, (radius, radius, 0.35), frame, rc.GLOSSY, traits.sunglasses)
    # the temples run from the outer edge of the frame to the ear
    front, ear = size.eye_x + radius - 0.1, size.skull[0] + 0.25
    center = (_SIDES * 0.5 * (front + ear), y + 0.2, 0.5 * (z - 0.8))
    length = 0.5 * np.hypot(front - ear, z + 0.8)
    parts.add(label, center, (0.17, 0.2, 1.08 * length), frame, present=traits.glasses,
              turn=_SIDES * np.arctan2(front - ear, z + 0.8))
    parts.add(label, (0.0, y + 0.25, z), (0.7, 0.2, 0.22), frame, present=traits.glasses)


def _add_clothes(parts: PartList, draw: Draws, traits: Traits, _: Proportions) -> None:
    label, color, trim = rc.CLOTH_LABEL, traits.cloth_color, traits.trim_color
    crew, turtleneck, lapels, scarf = (traits.collar == kind for kind in range(4))
    wide, high = draw("shoulder width", 7.2, 8.6), draw("shoulder height", 0.3, 1.0)
    material = np.where(draw.chance("stripes", 0.25), rc.STRIPES, rc.MATTE)
    stripes = (draw("stripe count", 60.0, 110.0), 0.0)
    fabric: dict[str, Any] = {"material": material, "color2": trim, "detail": stripes, "soft": 2}
    parts.add(label, (0.0, -12.0 + high, -1.2), (0.75 * wide, 3.6, 4.4), color, **fabric)
    parts.add(label, (0.0, -9.6 + high, -1.5), (0.62 * wide, 1.6, 2.6), color, **fabric)
    parts.add(label, (_SIDES * (wide - 3.2), -11.6 + high, -1.4), (3.6, 2.9, 3.1), color, **fabric)
    parts.add(label, (0.0, -8.5 + high, -1.2), (2.9, 0.75, 2.9), 0.5 * color + 0.5 * trim,
              present=crew)
    parts.add(label, (0.0, -8.2 + high, -1.2), (2.75, 2.2, 2.75), color, present=turtleneck)
    parts.add(label, (0.0, -8.0 + high, -1.1), (3.4, 1.2, 3.4), trim, rc.STRIPES, scarf,
              color2=color, detail=(140.0, 0.0))
    parts.add(label, (_SIDES * 1.55, -8.9 + high, 1.2), (1.5, 0.9, 0.5), trim, present=lapels,
              tilt=-0.5, roll=_SIDES * 0.75)

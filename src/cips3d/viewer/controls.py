"""The control panel of one client."""

from __future__ import annotations

from typing import Any

import numpy as np
import viser
from PIL import Image

from cips3d.models.protocol import ImageGenerator
from cips3d.models.types import DEFAULT_PSI
from cips3d.viewer.cameras import FOVS
from cips3d.viewer.rendering import Pixels
from cips3d.viewer.requests import BOUNDS, MODES, within

#: Side of the refined image: a multiple of the model's resolution, up to a number of pixels.
_REFINEMENT, _REFINED_SIDE = 4, 256
#: Side of the photo in the panel, pixels.
_PHOTO_SIDE = 256
#: Range of the field of view's slider unless the model's lies outside, degrees.
_USUAL_FOVS = (1.0, 60.0)


class Controls:
    """The inputs and buttons of a client. Inputs may hold anything (see `view_from`).

    The main panel has what most visits need. Everything else is in tabs of a second panel, which
    narrow windows show collapsed.

    Attributes:
        inputs: inputs that images depend on, by the names that `view_from` takes, without the mode.
    """

    def __init__(
        self, gui: viser.GuiApi, generator: ImageGenerator, has_other: bool, seed: int
    ) -> None:
        self._gui = gui
        self.inputs: dict[str, Any] = {}
        self._add_main_panel(generator)
        panel = gui.add_panel()
        panel.dock_below(gui.main_panel)
        with panel.add_tab("Subject"):
            self._add_subject(generator.style_blocks, has_other, seed)
        with panel.add_tab("View"):
            self._add_view(generator)
        with panel.add_tab("Quality"):
            self._add_quality(generator)

    def _add_main_panel(self, generator: ImageGenerator) -> None:
        gui, modes = self._gui, MODES if generator.has_density else MODES[:1]
        is_invertible = bool(generator.geometry_parts)
        hint = "Find the subject of a photo that is framed like the model's images"
        icon = viser.Icon.PHOTO_UP
        self.upload = gui.add_upload_button(
            "Open a photo", icon=icon, mime_type="image/*", hint=hint, visible=is_invertible
        )
        hint = "Show the subject found in the photo instead of the seeds"
        self.show_inversion = gui.add_checkbox("Photo's subject", False, hint=hint, visible=False)
        self.photo = gui.add_image(np.zeros((1, 1, 3), np.uint8), label="Photo", visible=False)
        self.reach = gui.add_markdown("", visible=False)
        hint = "Image, low-resolution NeRF image, depth map (near is bright) or mesh"
        self.mode = gui.add_dropdown("Show", modes, hint=hint)
        hint = "A random subject; back to the front"
        self.actions = gui.add_button_group("Actions", ("Random", "Reset view"), hint=hint)
        hint = (
            "Image: PNG at the window's size. Mesh: GLB with colors. Subject: safetensors for "
            "--subject, and its model if that is tuned to a photo or blended"
        )
        saves = ["Image", *["Mesh"] * ("mesh" in modes), *["Subject"] * is_invertible]
        self.save = gui.add_button_group("Save", saves, hint=hint)
        self.status = gui.add_markdown("…")

    def _add_subject(self, blocks: int, has_other: bool, seed: int) -> None:
        self._add_seed("shape_seed", "Shape seed", seed, "Seed of the shape code")
        self._add_seed("appearance_seed", "Color seed", seed, "Seed of the appearance code")
        hint = "Truncation: 1 gives the full variety, 0 the mean"
        self._add_slider("psi_shape", "Shape ψ", 0.05, DEFAULT_PSI, hint)
        self._add_slider("psi_appearance", "Color ψ", 0.05, DEFAULT_PSI, hint)
        if has_other:
            self._add_slider("blend", "Blend", 0.05, 0.0, "0: the first model. 1: the second")
        if blocks:
            self._add_seed("mix_seed", "Mixed seed", 1, "Seed of a second appearance for mixing")
            hint = f"First block with the second appearance; {blocks} turns style mixing off"
            mix_from = self._gui.add_slider("Mix from", 0, blocks, 1, blocks, hint=hint)
            self.inputs["mix_from"] = mix_from

    def _add_view(self, generator: ImageGenerator) -> None:
        gui = self._gui
        fov = within(generator.config.poses.fov, FOVS, FOVS[0])
        ends = min(fov, _USUAL_FOVS[0]), max(fov, _USUAL_FOVS[1])
        step = 0.5 if fov >= 1 else 0.01
        hint = "Angle across the shorter side, degrees"
        self.fov = gui.add_slider("Field of view", *ends, step, fov, hint=hint)
        hint = "Keep yaw and pitch in the range that the model was trained on"
        self.limit = gui.add_checkbox("Limit angles", True, hint=hint)
        hint, has_mesh = "Draw cameras of the training range around the mesh", generator.has_density
        self.show_cameras = gui.add_checkbox("Show cameras", False, hint=hint, visible=has_mesh)
        hint = "Collect views and save them as JSON for cips3d render --path"
        self.path = gui.add_button_group("Path", ("Add view", "Save", "Clear"), hint=hint)

    def _add_quality(self, generator: ImageGenerator) -> None:
        side, sampling = generator.config.resolution, generator.config.sampling
        side = max(side, min(_REFINEMENT * side, _REFINED_SIDE))
        self._add_slider("side", "Pixels", 16, side, "Shorter side of the image at rest")
        hint = "Evenly spread samples per ray"
        self._add_slider("coarse", "Coarse samples", 1, sampling.coarse, hint)
        hint = "Samples per ray near the surface"
        self._add_slider("fine", "Fine samples", 1, sampling.fine, hint)

    def _add_slider(self, name: str, label: str, step: float, value: Any, hint: str) -> None:
        low, high = BOUNDS[name]
        value = min(max(value, low), high)
        self.inputs[name] = self._gui.add_slider(label, low, high, step, value, hint=hint)

    def _add_seed(self, name: str, label: str, value: int, hint: str) -> None:
        low, high = BOUNDS[name]
        handle = self._gui.add_number(label, value, min=low, max=high, step=1, hint=hint)
        self.inputs[name] = handle

    def values(self) -> dict[str, Any]:
        """Current values by the names that `view_from` takes."""
        inputs = {name: handle.value for name, handle in self.inputs.items()}
        return {"mode": self.mode.value} | inputs

    def set_photo(self, pixels: Pixels) -> None:
        """Sets the photo that `show_photo` shows; what its inversion reached is not known yet."""
        self.reach.content = ""
        shown = Image.fromarray(pixels).resize((_PHOTO_SIDE, _PHOTO_SIDE))
        self.photo.image = np.asarray(shown)

    def set_reach(self, lines: list[str], warning: str | None) -> None:
        """Sets what the inversion of the photo reached."""
        first = [] if warning is None else [f"**Warning:** {warning}"]
        self.reach.content = "\n\n".join([*first, *lines])
        self.show_photo(self.show_inversion.value)

    def show_photo(self, is_shown: bool) -> None:
        """Shows or hides the photo beside its subject, if there is one, and what was reached."""
        self.photo.visible = is_shown and self.photo.image.shape[0] > 1
        self.reach.visible = is_shown and bool(self.reach.content)

    def set(self, **values: Any) -> None:
        """Sets inputs by name, as the user would."""
        for name, value in values.items():
            self.inputs[name].value = value

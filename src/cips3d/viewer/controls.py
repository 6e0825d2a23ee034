"""The control panel of one client."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import viser

from cips3d.models.protocol import ImageGenerator
from cips3d.viewer.requests import (
    COARSE_SAMPLES,
    FINE_SAMPLES,
    FOVS,
    LARGEST_PSI,
    LARGEST_SEED,
    SIDES,
    modes_of,
    whole,
    within,
)

#: A callback of viser's.
Callback = Callable[[viser.GuiEvent], Coroutine[Any, Any, None]]

#: Seed of the first subject, and its ψ, which is that of the command line.
_SEED, _PSI = 0, 0.7
#: Side of the refined image, as a multiple of the model's resolution.
_REFINEMENT = 2
#: Range of the field of view's slider unless the model's lies outside, degrees.
_USUAL_FOVS = (1.0, 60.0)
#: Actions, by the labels of their buttons.
RANDOM, RESET = "Random", "Reset view"
SAVE_IMAGE, SAVE_MESH, SAVE_SUBJECT = "Image", "Mesh", "Subject"
ADD_VIEW, SAVE_PATH, CLEAR_PATH = "Add view", "Save", "Clear"


class Controls:
    """The inputs and buttons of a client. Inputs may hold anything (see `view_from`).

    The main panel has what most visits need. Everything else is in tabs of a second panel, which
    narrow windows show collapsed.

    Args:
        gui: the client's own, so that clients do not share their controls.
        generator: the model.
        has_other: whether there is a second model to blend with.
    """

    def __init__(self, gui: viser.GuiApi, generator: ImageGenerator, has_other: bool) -> None:
        self._gui = gui
        self._inputs: dict[str, Any] = {}
        self._add_main_panel(generator)
        panel = gui.add_panel()
        panel.dock_below(gui.main_panel)
        with panel.add_tab("Subject"):
            self._add_subject(generator, has_other)
        with panel.add_tab("View"):
            self._add_view(generator)
        with panel.add_tab("Quality"):
            self._add_quality(generator)

    def _add_main_panel(self, generator: ImageGenerator) -> None:
        gui, modes = self._gui, modes_of(generator)
        is_invertible = bool(generator.geometry_parts)
        self.upload = gui.add_upload_button(
            "Open a photo",
            icon=viser.Icon.PHOTO_UP,
            mime_type="image/*",
            hint="Find the subject of a photo that is framed like the model's images",
            visible=is_invertible,
        )
        self.show_inversion = gui.add_checkbox(
            "Photo's subject",
            False,
            hint="Show the subject found in the photo instead of the seeds",
            visible=False,
        )
        self.mode = gui.add_dropdown(
            "Show",
            modes,
            hint="Image, low-resolution NeRF image, depth map (near is bright) or mesh",
        )
        self.actions = gui.add_button_group(
            "Actions", (RANDOM, RESET), hint="Random: a new subject. Reset view: back to the front"
        )
        saves = [SAVE_IMAGE, *[SAVE_MESH] * ("mesh" in modes), *[SAVE_SUBJECT] * is_invertible]
        self.save = gui.add_button_group(
            "Save",
            saves,
            hint="Image: PNG at the window's size. Mesh: GLB with colors. Subject: safetensors for "
            "--subject, and its model if that is tuned to a photo or blended",
        )
        self.status = gui.add_markdown("…")

    def _add_subject(self, generator: ImageGenerator, has_other: bool) -> None:
        self._number("shape_seed", "Shape seed", _SEED, "Seed of the shape code")
        self._number("appearance_seed", "Color seed", _SEED, "Seed of the appearance code")
        hint = "Truncation: 1 gives the full variety, 0 the mean"
        self._slider("psi_shape", "Shape ψ", (0.0, LARGEST_PSI), 0.05, _PSI, hint)
        self._slider("psi_appearance", "Color ψ", (0.0, LARGEST_PSI), 0.05, _PSI, hint)
        if has_other:
            hint = "Weight of the second model: 0 shows the first model, 1 the second"
            self._slider("blend", "Blend", (0.0, 1.0), 0.05, 0.0, hint)
        if blocks := generator.style_blocks:
            self._number("mix_seed", "Mixed seed", 1, "Seed of a second appearance for mixing")
            hint = f"First block with the second appearance; {blocks} turns style mixing off"
            self._slider("mix_from", "Mix from", (0, blocks), 1, blocks, hint)

    def _add_view(self, generator: ImageGenerator) -> None:
        gui = self._gui
        fov = within(generator.config.poses.fov, *FOVS, FOVS[0])
        ends = min(fov, _USUAL_FOVS[0]), max(fov, _USUAL_FOVS[1])
        step = 0.5 if fov >= 1 else 0.01
        self.fov = gui.add_slider(
            "Field of view", *ends, step, fov, hint="Angle across the shorter side, degrees"
        )
        self.limit = gui.add_checkbox(
            "Limit angles",
            True,
            hint="Keep yaw and pitch in the range that the model was trained on",
        )
        self.show_cameras = gui.add_checkbox(
            "Show cameras",
            False,
            hint="Draw cameras of the training range around the mesh",
            visible=generator.has_density,
        )
        self.path = gui.add_button_group(
            "Path",
            (ADD_VIEW, SAVE_PATH, CLEAR_PATH),
            hint="Collect views and save them as JSON for cips3d render --path",
        )

    def _add_quality(self, generator: ImageGenerator) -> None:
        config = generator.config
        side = whole(_REFINEMENT * config.resolution, *SIDES, SIDES[0])
        hint = "Shorter side of the image while the camera rests"
        self._slider("side", "Pixels", SIDES, 16, side, hint)
        hint = "Samples per ray, evenly spread"
        self._slider("coarse", "Coarse samples", COARSE_SAMPLES, 1, config.sampling.coarse, hint)
        hint = "Samples per ray near the surface that the coarse samples find"
        self._slider("fine", "Fine samples", FINE_SAMPLES, 1, config.sampling.fine, hint)

    # ---------------------------------------------------------------- values
    def values(self) -> dict[str, Any]:
        """Current values by the names that `view_from` takes."""
        inputs = {name: handle.value for name, handle in self._inputs.items()}
        return {"mode": self.mode.value} | inputs

    def set(self, **values: Any) -> None:
        """Sets inputs by name, as the user would."""
        for name, value in values.items():
            self._inputs[name].value = value

    def show_path_length(self, count: int) -> None:
        """Shows how many views the camera path has."""
        self.path.label = f"Path ({count})" if count else "Path"

    # ---------------------------------------------------------------- callbacks
    def on_change(self, callback: Callback) -> None:
        """Calls back when an input that images depend on changes, except the mode."""
        for handle in (*self._inputs.values(), self.show_inversion):
            handle.on_update(callback)

    def on_seed(self, callback: Callback) -> None:
        """Calls back when a seed of the subject changes."""
        for name in ("shape_seed", "appearance_seed"):
            self._inputs[name].on_update(callback)

    # ---------------------------------------------------------------- inputs
    def _slider(
        self,
        name: str,
        label: str,
        ends: tuple[float, float],
        step: float,
        value: float,
        hint: str,
    ) -> None:
        low, high = ends
        clamped = min(max(value, low), high)
        self._inputs[name] = self._gui.add_slider(label, low, high, step, clamped, hint=hint)

    def _number(self, name: str, label: str, value: int, hint: str) -> None:
        self._inputs[name] = self._gui.add_number(
            label, value, min=0, max=LARGEST_SEED, step=1, hint=hint
        )

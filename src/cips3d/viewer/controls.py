"""The panel of controls of one client."""

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

#: ψ at the start, that of the command line.
_PSI = 0.7
#: Side of the refined picture at the start, of the model's resolution: pixels are computed from their rays, so there are more.
_FINER = 2
#: Least reach of the slider, degrees.
_USUAL_FOVS = (1.0, 60.0)


class Controls:
    """Sliders, fields and buttons in a client's panel; values may be anything that the client sends (see `view_from`).

    Args:
        gui: the client's own, so that clients do not share their controls.
        generator: the model.
        has_other: whether there is a second model to blend with.
    """

    def __init__(self, gui: viser.GuiApi, generator: ImageGenerator, has_other: bool) -> None:
        c = generator.config
        self.mode = gui.add_dropdown("Show", modes_of(generator))
        self.status = gui.add_markdown("…")
        self._inputs: dict[str, Any] = {}
        with gui.add_folder("Subject"):
            self._number(gui, "shape_seed", "Shape", 0, "Seed of the shape code")
            self._number(gui, "appearance_seed", "Appearance", 0, "Seed of the appearance code")
            self.random = gui.add_button("Another subject", hint="Both seeds at random")
            hint = "Truncation: 1 is the full variety, 0 the mean subject"
            self._slider(gui, "psi_shape", "ψ shape", 0.0, LARGEST_PSI, 0.05, _PSI, hint)
            self._slider(gui, "psi_appearance", "ψ appearance", 0.0, LARGEST_PSI, 0.05, _PSI, hint)
            if has_other:
                self._slider(
                    gui,
                    "blend",
                    "Second model",
                    0.0,
                    1.0,
                    0.05,
                    0.0,
                    "0 is the first model, 1 the second",
                )
        if generator.style_blocks:
            with gui.add_folder("Style mixing", expand_by_default=False):
                self._number(gui, "mix_seed", "Appearance 2", 1, "Seed of a second appearance code")
                hint = f"Blocks of the implicit network from here on take the second appearance; {generator.style_blocks} is none"
                self._slider(
                    gui,
                    "mix_from",
                    "From block",
                    0,
                    generator.style_blocks,
                    1,
                    generator.style_blocks,
                    hint,
                )
        with gui.add_folder("Camera"):
            fov = within(c.poses.fov, *FOVS, FOVS[0])
            ends = min(fov, _USUAL_FOVS[0]), max(fov, _USUAL_FOVS[1])
            self.fov = gui.add_slider(
                "Field of view", *ends, 0.5 if fov >= 1 else 0.01, fov, hint="Vertical, degrees"
            )
            self.reset = gui.add_button("Reset view")
        with gui.add_folder("Quality", expand_by_default=False):
            side = whole(_FINER * c.resolution, *SIDES, SIDES[0])
            self._slider(
                gui,
                "side",
                "Pixels",
                SIDES[0],
                SIDES[1],
                16,
                side,
                "Height of the picture when the camera is still",
            )
            hint = "Per ray: spread evenly"
            self._slider(
                gui, "coarse", "Coarse samples", *COARSE_SAMPLES, 1, c.sampling.coarse, hint
            )
            hint = "Per ray: near the surface, found by the coarse ones"
            self._slider(gui, "fine", "Fine samples", *FINE_SAMPLES, 1, c.sampling.fine, hint)
        with gui.add_folder("Save"):
            self.save_picture = gui.add_button("Picture", hint="What is shown, as PNG")
            self.save_mesh = gui.add_button(
                "Mesh",
                hint="The subject with its colours, as GLB",
                visible="mesh" in modes_of(generator),
            )
            hint = "Its styles, for the commands' option --subject; and the model, where it is another one than at the start"
            self.save_subject = gui.add_button(
                "Subject", hint=hint, visible=bool(generator.geometry_parts)
            )
            self.add_keyframe = gui.add_button("Add camera to path")
            self.save_path = gui.add_button(
                "Camera path", hint="As JSON, for cips3d render --path", disabled=True
            )
            self.clear_path = gui.add_button("Clear camera path", disabled=True)
        with gui.add_folder(
            "Your picture", visible=bool(generator.geometry_parts)
        ):  # others cannot be inverted
            self.upload = gui.add_upload_button(
                "Open a picture", mime_type="image/*", hint="Finds its subject (inversion)"
            )
            self.show_inversion = gui.add_checkbox("Show its subject", False, visible=False)

    def values(self) -> dict[str, Any]:
        """What the inputs say at the moment, by the names that `view_from` knows."""
        return {"mode": self.mode.value} | {
            name: handle.value for name, handle in self._inputs.items()
        }

    def on_change(self, callback: Callable[[viser.GuiEvent], Coroutine[Any, Any, None]]) -> None:
        """Calls back whenever an input that a picture depends on changes, but for the mode."""
        for handle in (*self._inputs.values(), self.show_inversion):
            handle.on_update(callback)

    def on_seed(self, callback: Callable[[viser.GuiEvent], Coroutine[Any, Any, None]]) -> None:
        """Calls back whenever a seed of the subject changes."""
        for name in ("shape_seed", "appearance_seed"):
            self._inputs[name].on_update(callback)

    def set(self, **values: Any) -> None:
        """Sets inputs by name, as the user would."""
        for name, value in values.items():
            self._inputs[name].value = value

    def _slider(
        self,
        gui: viser.GuiApi,
        name: str,
        label: str,
        low: Any,
        high: Any,
        step: Any,
        value: Any,
        hint: str,
    ) -> None:
        self._inputs[name] = gui.add_slider(
            label, low, high, step, min(max(value, low), high), hint=hint
        )

    def _number(self, gui: viser.GuiApi, name: str, label: str, value: int, hint: str) -> None:
        self._inputs[name] = gui.add_number(
            label, value, min=0, max=LARGEST_SEED, step=1, hint=hint
        )

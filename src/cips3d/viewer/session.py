"""One client of the viewer: what it sees, and what it asks for beside that."""

from __future__ import annotations

import asyncio
import json
import math
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import viser
from PIL import Image

from cips3d import pretrained
from cips3d.camera import Camera
from cips3d.editing.inversion import invert
from cips3d.editing.subject import Subject
from cips3d.errors import UserError
from cips3d.export.media import to_uint8
from cips3d.export.meshes import extract_mesh, glb
from cips3d.files import png
from cips3d.models.protocol import RayGenerator
from cips3d.models.types import RenderOutput, Sampling, Styles
from cips3d.viewer.canvas import Stage
from cips3d.viewer.controls import Controls
from cips3d.viewer.rendering import (
    Pace,
    finer_sides,
    on_canvas,
    pixels_of,
    preview_sampling,
    preview_side,
    strips,
)
from cips3d.viewer.requests import (
    LARGEST_CANVAS,
    LARGEST_SEED,
    Choice,
    Pose,
    View,
    front_camera,
    keyframe,
    prior_cameras,
    view_from,
    whole,
)
from cips3d.viewer.subject_cache import Subjects
from cips3d.viewer.transfer import read_upload, written
from cips3d.viewer.worker import Steps, Worker, at_once

#: Seconds without a movement before a picture is refined, and without a change before a mesh is made.
STILL_SECONDS, MESH_STILL_SECONDS = 0.15, 0.3
#: Grey level beside the picture, that of the page behind a mesh.
BACKGROUND = 255
#: Cells along each side of the meshes that are shown, one after the other, and of the one that is saved.
_SHOWN_MESHES, _SAVED_MESH = (48, 128), 256
#: From where a mesh and the cameras around it are seen: yaw and pitch (degrees), distance (of the prior's), field of view.
_OVERVIEW = (60.0, 20.0, 1.5, 40.0)
#: No truncation, which pictures' subjects are shown with at first.
_WHOLE = {"psi_shape": 1.0, "psi_appearance": 1.0}
#: Side of the pictures in the cameras' frusta, pixels.
_FRUSTUM_SIDE = 96


@dataclass(frozen=True)
class Workers:
    """The threads that all clients share, for what takes ever longer: pictures, meshes and files, inversions."""

    pictures: Worker
    meshes: Worker
    inversions: Worker

    def close(self) -> None:
        for worker in (self.pictures, self.meshes, self.inversions):
            worker.close()


class _GivenUp(Exception):
    """Nobody waits for an inversion any more: the client has gone, or has sent another picture."""


class Session:
    """One client: its controls, its camera, and the pictures or the mesh that it sees.

    Callbacks come from viser's threads, steps are done by the workers' threads.

    Args:
        client: the client's handle.
        subjects: of the model, shared by all clients.
        workers: shared by all clients.
        pace: of rendering, shared by all clients.
        subject: to begin with, instead of a random one.

    Attributes:
        controls: the client's panel.
        pose: its camera.
        coarse_side: height of the last coarse picture, pixels.
    """

    def __init__(
        self,
        client: viser.ClientHandle,
        subjects: Subjects,
        workers: Workers,
        pace: Pace,
        subject: Subject | None = None,
    ) -> None:
        self._client, self._subjects, self._workers, self._pace = client, subjects, workers, pace
        self._config = subjects.generator.config
        self._stage = Stage(client)
        self._meshed: Choice | None = None
        self._switches = 0
        self.coarse_side = 0
        self._keyframes: list[dict[str, Any]] = []
        self._inversion: int | None = None
        self._shows_inversion, self._other_psi = False, dict(_WHOLE)
        self._newest_picture: torch.Tensor | None = None
        self._drawing = threading.Lock()
        self.pose = _pose(client.camera)
        self.controls = Controls(client.gui, subjects.generator, subjects.other is not None)
        self._connect()
        if subject is None:
            self._request()
        else:
            self._show_inversion(subjects.generator, subject.styles, subject.camera)

    def close(self) -> None:
        """Does no more for the client."""
        self._stage.close()
        self._workers.pictures.forget(self._id)
        self._workers.pictures.forget((self._id, "picture file"))
        for kind in ("mesh", "mesh file", "subject file"):
            self._workers.meshes.forget((self._id, kind))
        self._workers.inversions.forget(self._id)
        if self._inversion is not None:
            self._subjects.remove(self._inversion)

    @property
    def _id(self) -> int:
        return self._client.client_id

    def _connect(self) -> None:
        """Tells viser what to call."""
        controls = self.controls

        @self._client.camera.on_update
        async def moved(camera: viser.CameraHandle) -> None:
            pose = _pose(camera)
            if pose != self.pose:
                self.pose = pose
                if not self._stage.has_mesh:
                    self._request()

        async def changed(_: viser.GuiEvent) -> None:
            self._request()

        controls.on_change(changed)
        controls.on_seed(self._when(self._leave_inversion))
        controls.show_inversion.on_update(self._when(self._change_psi))
        controls.mode.on_update(self._when(self._change_mode))
        controls.fov.on_update(self._when(self._change_fov))
        controls.reset.on_click(self._when(self._reset_view))
        controls.random.on_click(self._when(self._another_subject))
        controls.add_keyframe.on_click(self._when(self._add_keyframe))
        controls.clear_path.on_click(self._when(self._clear_path))
        controls.save_path.on_click(self._when(self._save_path))
        meshes = self._workers.meshes
        controls.save_subject.on_click(
            self._when(lambda: self._save(meshes, "subject file", self._subject_file))
        )
        controls.save_mesh.on_click(
            self._when(lambda: self._save(meshes, "mesh file", self._mesh_file))
        )

        @controls.save_picture.on_click
        async def _(
            _: viser.GuiEvent,
        ) -> None:  # in the event loop, as movements are, so that none comes in between
            with self._told():
                if (
                    self._stage.has_mesh
                ):  # not there, which waits for its end, nor in a worker's thread: it may take long
                    asyncio.get_running_loop().run_in_executor(None, self._save_drawing)
                else:
                    self._save(self._workers.pictures, "picture file", self._picture_file)

        @controls.upload.on_upload
        def _(
            _: viser.GuiEvent,
        ) -> None:  # not in the event loop: large pictures take time to decode
            with self._told():
                self._open_picture()

    def _when(
        self, action: Callable[[], None]
    ) -> Callable[[viser.GuiEvent], Coroutine[Any, Any, None]]:
        """A callback of viser's that tells the user of their errors."""

        async def callback(_: viser.GuiEvent) -> None:
            with self._told():
                action()

        return callback

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Shows an error in the block as a notification; one that is not the user's is raised all the same."""
        try:
            yield
        except Exception as error:
            if not self._stage.closed:
                text = str(error) or type(error).__name__
                self._client.add_notification(
                    "That did not work", text, color="red", auto_close_seconds=15
                )
            if not isinstance(error, UserError):
                raise

    def _guarded(self, steps: Steps[None]) -> Steps[None]:
        with self._told():
            yield from steps

    # ---------------------------------------------------------------- what is shown
    def _view(self) -> View | None:
        shown = self._inversion if self.controls.show_inversion.value else None
        return view_from(
            {**self.controls.values(), "inversion": shown}, self.pose, self._subjects.generator
        )

    def _request(self) -> None:
        """Has the client's picture, or its mesh, made anew."""
        if self._stage.has_mesh:
            self._workers.meshes.submit(
                (self._id, "mesh"), self._guarded(self._mesh_steps()), MESH_STILL_SECONDS
            )
        else:
            self._workers.pictures.submit(self._id, self._guarded(self._picture_steps()))

    def _picture_steps(self) -> Steps[None]:
        """A coarse picture of the view at that moment, then, when nothing has moved for a while, finer ones."""
        began = time.monotonic()
        view = self._view()
        if view is None:
            return
        generator, styles = self._subjects.find(view.choice)
        side = self.coarse_side = preview_side(view, self._pace, self.coarse_side)
        # in one step: one who never rests would never see a picture that can be broken off
        out = at_once(self._strips(generator, styles, view, side, preview_sampling(view.sampling)))
        self._stage.show_picture(on_canvas(pixels_of(out, view.mode), view, BACKGROUND), "jpeg")
        yield max(0.0, began + STILL_SECONDS - time.monotonic())
        began = time.monotonic()
        for finer in finer_sides(view.side, side):
            out = yield from self._strips(generator, styles, view, finer, view.sampling)
            self._stage.show_picture(on_canvas(pixels_of(out, view.mode), view, BACKGROUND), "png")
        samples = f"{view.sampling.coarse} + {view.sampling.fine} samples"
        self._say(f"{view.side} pixels, {samples}, {time.monotonic() - began:.2g} s")

    def _strips(
        self, generator: RayGenerator, styles: Styles, view: View, side: int, sampling: Sampling
    ) -> Steps[RenderOutput]:
        return strips(generator, styles, view.camera, view.size(side), sampling, self._pace)

    def _say(self, text: str) -> None:
        if not self._stage.closed:
            self.controls.status.content = text

    # ---------------------------------------------------------------- mesh and cameras
    def _change_mode(self) -> None:
        """Changes what is shown; between pictures and the mesh, the camera goes to where it shows them."""
        for_mesh = self.controls.mode.value == "mesh"
        if for_mesh != self._stage.has_mesh:
            self._workers.pictures.forget(self._id)
            self._workers.meshes.forget((self._id, "mesh"))
            self._stage.clear(for_mesh)
            self._meshed, self._switches = None, self._switches + 1
            self._reset_view()
        self._request()

    def _mesh_steps(self) -> Steps[None]:
        """A coarse mesh of the subject, cameras of the prior with what they see, a fine mesh."""
        view = self._view()
        if view is None or view.choice == self._meshed:
            return
        generator, styles = self._subjects.find(view.choice)
        coarse, fine = _SHOWN_MESHES
        switches = self._switches
        self._say("making the mesh …")
        self._meshed = None  # what is shown now is no longer the last subject's
        self._stage.show_mesh(glb(extract_mesh(generator, styles, coarse)))
        yield 0.0
        cameras = prior_cameras(self._config.poses)
        for i in range(len(cameras)):
            with torch.inference_mode():
                picture = to_uint8(generator.render(styles, cameras[i], _FRUSTUM_SIDE).image)[0]
            self._stage.show_camera(str(i), cameras[i], picture)
            yield 0.0
        mesh = extract_mesh(generator, styles, fine)
        self._stage.show_mesh(glb(mesh))
        self._say(f"{len(mesh.faces):,} triangles")
        if switches == self._switches:  # else the scene has been cleared meanwhile
            self._meshed = view.choice

    # ---------------------------------------------------------------- camera
    def _reset_view(self) -> None:
        poses = self._config.poses
        if self._stage.has_mesh:
            yaw, pitch, radii, fov = _OVERVIEW
            self._place(
                Camera.orbit(math.radians(yaw), math.radians(pitch), radii * poses.radius, fov)
            )
        else:
            self._place(front_camera(poses))

    def _place(self, camera: Camera) -> None:
        """Moves the client's camera; it turns about the point that is ahead as far away as the origin."""
        pose = camera.cam_to_world[0].cpu().double().numpy()
        position = pose[:3, 3]
        with self._client.atomic():
            self._client.camera.position = position
            self._client.camera.look_at = position - pose[:3, 2] * np.linalg.norm(position)
            self._client.camera.up_direction = (
                pose[:3, 1] if _is_rolled(camera) else np.array([0.0, 1.0, 0.0])
            )
            self.controls.fov.value = float(camera.fov)
            self._change_fov()
        self.pose = _pose(self._client.camera)  # without waiting for what the client makes of it

    def _change_fov(self) -> None:
        fov = self.controls.fov.value
        if math.isfinite(fov):
            self._client.camera.fov = math.radians(
                min(max(fov, self.controls.fov.min), self.controls.fov.max)
            )

    def _leave_inversion(self) -> None:
        self.controls.show_inversion.value = False

    def _change_psi(self) -> None:
        """Pictures' subjects and random ones have a truncation each: the other one's is kept while one is shown."""
        if self.controls.show_inversion.value != self._shows_inversion:
            values = self.controls.values()
            kept, self._shows_inversion = (
                {name: values[name] for name in _WHOLE},
                not self._shows_inversion,
            )
            self.controls.set(**self._other_psi)
            self._other_psi = kept

    def _another_subject(self) -> None:
        self._leave_inversion()
        self.controls.set(
            shape_seed=random.randint(0, LARGEST_SEED),
            appearance_seed=random.randint(0, LARGEST_SEED),
        )

    # ---------------------------------------------------------------- camera path
    def _add_keyframe(self) -> None:
        view = self._view()
        if view is not None:
            self._set_path([*self._keyframes, keyframe(view.camera, self._keyframes)])

    def _clear_path(self) -> None:
        self._set_path([])

    def _set_path(self, keyframes: list[dict[str, Any]]) -> None:
        self._keyframes = keyframes
        count = len(keyframes)
        self.controls.save_path.label = f"Camera path ({count})" if count else "Camera path"
        self.controls.save_path.disabled = self.controls.clear_path.disabled = count == 0

    def _save_path(self) -> None:
        if not self._keyframes:
            raise UserError("the camera path is empty; add cameras to it first")
        self._download(
            "camera-path.json", json.dumps({"keyframes": self._keyframes}, indent=1).encode()
        )

    # ---------------------------------------------------------------- files
    def _save(
        self, worker: Worker, kind: str, make: Callable[[View, RayGenerator, Styles], Steps[None]]
    ) -> None:
        """Has a file made of the view as it is now."""
        view = self._view()
        if (
            view is not None
        ):  # found now: an inverted picture may have given way to another when the worker comes to it
            worker.submit(
                (self._id, kind), self._guarded(make(view, *self._subjects.find(view.choice)))
            )

    def _download(self, name: str, content: bytes) -> None:
        if not self._stage.closed:
            self._client.send_file_download(name, content, save_immediately=True)

    def _save_drawing(self) -> None:
        """Of a mesh what the browser draws, once at a time."""
        with self._told():
            if not self._drawing.acquire(blocking=False):
                return
            height, width = (
                whole(x, 1, LARGEST_CANVAS, 1) for x in (self.pose.height, self.pose.width)
            )
            try:
                drawn = self._client.get_render(height, width, transport_format="png", timeout=20)
                self._download("view.png", png(Image.fromarray(drawn)))
            except (RuntimeError, TimeoutError):
                raise UserError(
                    "the browser drew no picture; keep the viewer's tab in front while it is saved"
                ) from None
            finally:
                self._drawing.release()

    def _picture_file(self, view: View, generator: RayGenerator, styles: Styles) -> Steps[None]:
        """The refined picture, as it is without a canvas."""
        out = yield from self._strips(generator, styles, view, view.side, view.sampling)
        self._download("view.png", png(Image.fromarray(pixels_of(out, view.mode))))

    def _mesh_file(self, _: View, generator: RayGenerator, styles: Styles) -> Steps[None]:
        yield 0.0
        self._download("subject.glb", glb(extract_mesh(generator, styles, _SAVED_MESH)))

    def _subject_file(self, view: View, generator: RayGenerator, styles: Styles) -> Steps[None]:
        yield 0.0
        save = partial(Subject(styles, view.camera).save, generator=generator)
        self._download("subject.safetensors", written("subject.safetensors", save))
        if generator is not self._subjects.generator:  # tuned to a picture, or blended
            self._download(
                "model.safetensors",
                written("model.safetensors", partial(pretrained.save, generator)),
            )

    # ---------------------------------------------------------------- a user's picture
    def _open_picture(self) -> None:
        upload = self.controls.upload.value
        image = self._newest_picture = read_upload(
            upload.name, upload.content, self._config.resolution
        )
        self._workers.inversions.submit(self._id, self._guarded(self._inversion_steps(image)))

    def _inversion_steps(self, image: torch.Tensor) -> Steps[None]:
        """Finds the picture's subject and shows it from the picture's camera."""
        notification = self._client.add_notification(
            "Finding the subject …", "", loading=True, with_close_button=False
        )

        def tell(share: float, _: str) -> None:
            if self._stage.closed or self._newest_picture is not image:
                raise _GivenUp
            notification.body = f"{share:.0%}"

        try:
            yield 0.0
            subjects = self._subjects
            found = invert(
                subjects.generator, image, discriminator=subjects.discriminator, progress=tell
            )
            self._show_inversion(found.generator, found.styles, found.camera)
        except _GivenUp:
            return
        finally:
            if not self._stage.closed:
                notification.remove()

    def _show_inversion(self, generator: RayGenerator, styles: Styles, camera: Camera) -> None:
        last, self._inversion = self._inversion, self._subjects.add(generator, styles)
        if last is not None:
            self._subjects.remove(last)
        if self._stage.closed:
            self._subjects.remove(self._inversion)
            return
        if self._shows_inversion:
            self.controls.set(**_WHOLE)
        else:
            self._other_psi = dict(_WHOLE)
        self.controls.show_inversion.visible = True
        self.controls.show_inversion.value = True
        if not self._stage.has_mesh:
            self._place(camera)
        self._request()


def _is_rolled(camera: Camera) -> bool:
    """Whether the picture's horizon is tilted."""
    return abs(float(camera.cam_to_world[0, 1, 0])) > 1e-3


def _pose(camera: viser.CameraHandle) -> Pose:
    wxyz, position = (
        tuple(float(x) for x in np.ravel(values)) for values in (camera.wxyz, camera.position)
    )
    return Pose(
        wxyz, position, float(camera.fov), int(camera.image_width), int(camera.image_height)
    )

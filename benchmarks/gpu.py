"""What a GPU does in eight minutes: it passes the tests, is measured, and trains a small model.

1. The tests of devices (tests/test_devices.py) on the GPU.
2. The rate of plain matrix products; images of the paper-size generator from 64² to 1024², each
   precision, plain and prepared; the implicit network compiled.
3. Training steps of ffhq-64, ffhq-128 and ffhq-256, each precision, with the peak memory next to
   what `cips3d plan` predicts.
4. heads-64, trained for the rest of the time.

Everything is in OUT/gpu.json, part by part as it finishes, and OUT/gpu.png shows subjects of the
trained model. Started again, it goes on with what is missing; a part that is deleted from the file
is repeated. It needs no network.

    make gpu        or        python benchmarks/gpu.py [--out runs/gpu] [--minutes 8]
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from stepping import prepared, take_step
from torch import Tensor

from cips3d import pretrained
from cips3d.camera import Camera
from cips3d.configuration import read_json
from cips3d.data import open_dataset
from cips3d.errors import UserError, first_line
from cips3d.export.media import save_image
from cips3d.export.sheets import orbit_cameras, view_sheet
from cips3d.files import atomic_path
from cips3d.metrics.evaluation import geometry_table
from cips3d.models.config import GeneratorConfig
from cips3d.models.generator import Generator
from cips3d.training.loop import train
from cips3d.training.planning import StepCost, step_cost, visible_share
from cips3d.training.presets import preset
from cips3d.training.recipe import TrainConfig, with_minutes
from cips3d.training.run import CONFIG_FILE, Run

ROOT = Path(__file__).parent.parent
#: The precisions of training; "no" is float32.
PRECISIONS: tuple[str, ...] = get_args(get_type_hints(TrainConfig)["precision"])
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Seconds that the tests may take, and that are kept for sheet and table of the trained model.
TEST_SECONDS, LAST_SECONDS = 150, 25
YAWS = (-30, -15, 0, 15, 30)

Figures = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """What is measured; small for a dry run on a CPU."""

    tests: str = "tests/test_devices.py"
    product: int = 8192
    generator: GeneratorConfig = GeneratorConfig()  # noqa: RUF009 (frozen)
    sides: tuple[int, ...] = (64, 128, 256, 512, 1024)
    compiled: str = "inductor"
    presets: tuple[str, ...] = ("ffhq-64", "ffhq-128", "ffhq-256")
    batch: int = 4
    repeats: int = 5
    seconds: float = 1.5
    trained: str = "heads-64"
    subjects: int = 32

    @staticmethod
    def dry() -> Sizes:
        return Sizes(
            "tests/test_kernels.py", 64, preset("heads-32").generator, (8,), "eager",
            ("heads-32",), 2, 2, 0.0, "heads-32", 4,
        )  # fmt: skip


# ---------------------------------------------------------------- time and memory
@dataclass(frozen=True)
class Meter:
    """Times calls on a device, and reads its peak memory."""

    device: torch.device
    sizes: Sizes

    def synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def allocated(self) -> int:
        """Bytes of tensors on the GPU; 0 elsewhere."""
        return torch.cuda.memory_allocated() if self.device.type == "cuda" else 0

    def __call__(self, function: Callable[[], object], before: int = 0) -> Figures:
        """Median seconds of a call, and its peak bytes above those before."""
        for _ in range(2):  # finds the fastest convolutions, whose workspaces do not count
            function()
        self.synchronize()
        cuda, times = self.device.type == "cuda", list[float]()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        while len(times) < self.sizes.repeats or sum(times) < self.sizes.seconds:
            start = time.perf_counter()
            function()
            self.synchronize()
            times.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() - before if cuda else None
        return {"seconds": statistics.median(times), "repeats": len(times), "peak_bytes": peak}

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, DTYPES[precision], enabled=precision != "no")


def supports(device: torch.device, precision: str) -> bool:
    """Whether a GPU has a precision itself: torch would emulate bfloat16 on older ones."""
    old = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return precision != "bf16" or not old


# ---------------------------------------------------------------- parts
def tests(meter: Meter) -> Figures:
    """The tests of devices, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", meter.sizes.tests]
    on_gpu = str(int(meter.device.type != "cpu"))
    found = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"CIPS3D_GPU": on_gpu}, capture_output=True, text=True,
        timeout=TEST_SECONDS, check=False,
    )  # fmt: skip
    lines = found.stdout.splitlines() or found.stderr.splitlines()[-1:] or ["no output"]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"status": found.returncode, "summary": lines[-1], "failed": failed}


def products(meter: Meter, precision: str) -> Figures:
    """The rate of one large matrix product."""
    n, like = meter.sizes.product, {"dtype": DTYPES[precision], "device": meter.device}
    a, b = torch.randn(n, n, **like), torch.randn(n, n, **like)
    found = meter(lambda: a @ b)
    return {"seconds": found["seconds"], "tflops": 2 * n**3 / found["seconds"] / 1e12}


@functools.cache
def generator_of(config: GeneratorConfig, device: torch.device) -> Generator:
    """A new generator, the same in all parts."""
    torch.manual_seed(0)
    return Generator(config).to(device).eval().requires_grad_(False)


@torch.no_grad()
def images(meter: Meter, side: int, precision: str, ready: bool) -> Figures:
    """One image of one subject, and its PSNR to the plain one in float32, null if equal."""
    before = meter.allocated()
    generator = generator_of(meter.sizes.generator, meter.device)
    styles = generator.map(generator.sample_latents(1, 0), 1.0)
    camera = Camera.orbit(0.3, 0.1).to(generator.shape_mean)
    codes = styles
    if ready:
        codes = generator.prepare(styles, "bfloat16" if precision == "bf16" else "float32")

    def image() -> Tensor:
        with meter.autocast(precision):
            return generator.render(codes, camera, side).image

    found = meter(image, before)
    exact = generator.render(styles, camera, side).image
    error = float((image().float().clamp(-1, 1) - exact.clamp(-1, 1)).square().mean())
    return found | {
        "megapixels_per_second": side**2 / found["seconds"] / 1e6,
        "psnr": 10 * math.log10(4 / error) if error else None,
    }


@torch.no_grad()
def compiled(meter: Meter) -> Figures:
    """The implicit network through torch.compile, float32 and without gradients, against plain."""
    side, generator = meter.sizes.sides[0], generator_of(meter.sizes.generator, meter.device)
    w = generator.map(generator.sample_latents(1, 0)).appearance
    feature = torch.randn(1, side**2, generator.networks.feature_dim).to(meter.device)
    start = time.perf_counter()
    network = torch.compile(generator.inr, backend=meter.sizes.compiled)
    error = float((network(feature, w) - generator.inr(feature, w)).abs().max())
    first = time.perf_counter() - start
    plain, other = (meter(lambda n=n: n(feature, w))["seconds"] for n in (generator.inr, network))
    return {"plain_seconds": plain, "seconds": other, "first_seconds": first, "error": error}


def step_config(sizes: Sizes, name: str, precision: str) -> TrainConfig:
    """The last stage of a preset, as one GPU of several takes it."""
    base = preset(name)
    stage = replace(base.stages[-1], batch=sizes.batch, fade_kimg=0.0, from_average=False)
    values: Any = {"stages": (stage,), "data": "heads", "precision": precision, "workers": 0}
    return replace(base, **values)


@functools.cache
def planned(sizes: Sizes, name: str, half: bool) -> tuple[StepCost, float]:
    """What `cips3d plan` predicts of a step, and the share of visible samples that it assumes."""
    config = step_config(sizes, name, "bf16" if half else "no")
    (stage,), share = config.stages, visible_share(config)
    return step_cost(config, stage, stage.batch, 0, share), share


def steps(meter: Meter, name: str, precision: str) -> Figures:
    """Training steps of a new run, and the memory that `cips3d plan` predicts for them."""
    config, before = step_config(meter.sizes, name, precision), meter.allocated()
    (stage,) = config.stages
    size = (stage.batch, 3, stage.resolution, stage.resolution)
    real = torch.randint(0, 256, size, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        run = prepared(Run(config, Path(folder) / "run"))
        found = meter(lambda: take_step(run, real), before)
    cost, share = planned(meter.sizes, name, precision != "no")
    rate = stage.batch / found["seconds"]
    return found | {
        "images_per_second": rate,
        "tflops": rate * cost.flops / 1e12,
        "planned_bytes": cost.peak_bytes,
        "planned_share": share,
    }


def trained(meter: Meter, out: Path, ends: float) -> Figures:
    """A preset on the embedded heads, trained or resumed until `ends`; its figures and a sheet."""
    sizes, folder = meter.sizes, out / meter.sizes.trained
    if (folder / CONFIG_FILE).exists():
        config = read_json(TrainConfig, folder / CONFIG_FILE)
    else:
        minutes = max(0.5, (ends - time.monotonic() - LAST_SECONDS) / 60)
        # the heads are ray-cast on the CPU
        config = with_minutes(replace(preset(sizes.trained), workers=workers()), minutes)
        if sizes == Sizes.dry():
            stage = replace(config.stages[0], batch=4, kimg=0.012)
            config = replace(config, stages=(stage,), workers=0, log_steps=1)
    start = time.monotonic()
    model = pretrained.load(train(Run(config, folder))).to(meter.device)
    lines = [
        json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    speeds = {line["resolution"]: line["images_per_second"] for line in lines}
    cameras, codes = orbit_cameras(model, YAWS), model.sample_latents(6, 0)
    sheet = view_sheet(model, codes, cameras, show=("image", "depth"))
    save_image(out / "gpu.png", sheet)
    table = geometry_table(model, open_dataset("heads", model.config.resolution), sizes.subjects)
    return {
        "images": lines[-1]["images"],
        "skipped_steps": lines[-1]["skipped_steps"],
        "images_per_second": speeds,
        "data_share": lines[-1]["data_share"],
        "seconds": time.monotonic() - start,
    } | table.as_json()


def workers() -> int:
    """Processes that make heads next to the training one."""
    return min(8, max(0, (os.cpu_count() or 1) - 1))


# ---------------------------------------------------------------- all of them
def parts(meter: Meter, out: Path, ends: float) -> Iterator[tuple[str, Callable[[], Figures]]]:
    """Every part by name, in order."""
    sizes = meter.sizes
    had = [p for p in PRECISIONS if supports(meter.device, p)]
    yield "tests", lambda: tests(meter)
    for precision in had:
        yield f"product {precision}", lambda p=precision: products(meter, p)
    for side in sizes.sides:
        for p in had:
            yield f"image {side} {p}", lambda s=side, p=p: images(meter, s, p, False)
        for p in (p for p in had if p != "fp16"):
            yield f"image {side} {p} prepared", lambda s=side, p=p: images(meter, s, p, True)
    yield "compiled", lambda: compiled(meter)
    generator_of.cache_clear()
    for name in sizes.presets:
        for p in had:
            if (p, meter.device.type) != ("fp16", "cpu"):  # which GPUs alone train in
                yield f"step {name} {p}", lambda n=name, p=p: steps(meter, n, p)
    yield "trained", lambda: trained(meter, out, ends)


def machine(device: torch.device) -> Figures:
    """What the figures depend on."""
    commit = ""
    if shutil.which("git"):
        command = ["git", "rev-parse", "HEAD"]
        found = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        commit = found.stdout.strip()
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    return {"device": name, **versions, "commit": commit}


def measure_all(meter: Meter, out: Path, minutes: float) -> bool:
    """All parts that OUT/gpu.json lacks; returns whether the tests pass and no part failed."""
    path, ends = out / "gpu.json", time.monotonic() + 60 * minutes
    here = machine(meter.device)
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"machine": here}
    if results["machine"] != here:
        raise UserError(f"{path}: has the results of {results['machine']}; give another --out")
    for name, work in parts(meter, out, ends):
        if name in results:
            continue
        gc.collect()
        if meter.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            results[name] = work()
        except (UserError, torch.OutOfMemoryError, subprocess.TimeoutExpired) as error:
            results[name] = {"failed": first_line(error)}
        except Exception as error:  # such as a fault of the GPU, after which nothing works
            results[name] = {"failed": f"{type(error).__name__}: {first_line(error)}"}
            raise
        finally:
            if name in results:
                with atomic_path(path) as temporary:
                    temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
                print(f"{name}: {json.dumps(results[name])}", flush=True)
    return not any(part.get("failed") for part in results.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on a CPU too")
    given = parser.parse_args()
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if device.type == "cpu" and not given.dry_run:
        parser.error("this machine has no GPU that torch finds; --dry-run tries the script")
    given.out.mkdir(parents=True, exist_ok=True)
    meter = Meter(device, Sizes.dry() if given.dry_run else Sizes())
    try:
        passed = measure_all(meter, given.out, given.minutes)
    except UserError as error:
        parser.error(str(error))
    print(f"{given.out / 'gpu.json'}, {given.out / 'gpu.png'}")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()

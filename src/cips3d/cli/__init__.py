"""The command line: parses, calls the library, prints. Every error that a user can cause is one line and exit status 2."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from io import TextIOWrapper

from huggingface_hub.utils.logging import set_verbosity_error
from tyro import conf
from tyro.extras import SubcommandApp

from cips3d.cli import (
    blend,
    data,
    demo,
    evaluate,
    finetune,
    imports,
    info,
    invert,
    mesh,
    plan,
    render,
    sample,
    train,
    view,
)
from cips3d.errors import UserError, machine_fault

app = SubcommandApp()
app.command(demo.demo)
app.command(train.train)
app.command(sample.sample)
app.command(render.render)
app.command(view.view)
app.command(mesh.mesh)
app.command(data.app, name="data", help="Make, build and check datasets.")
app.command(info.info)
app.command(name="eval")(evaluate.evaluate_model)
app.command(plan.plan)
app.command(finetune.finetune)
app.command(blend.blend)
app.command(blend.mix)
app.command(invert.invert)
app.command(imports.import_official)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `cips3d`.

    Args:
        args: command line words; those of the process by default.
    """
    warnings.filterwarnings(
        "ignore", module=r"(?!cips3d)"
    )  # a library's advice to developers is noise to users
    warnings.filterwarnings(
        "default", message="CUDA initialization"
    )  # but not why their GPU is left alone
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(
            errors="replace"
        )  # not every terminal and file has a ², or a file name its bytes
    set_verbosity_error()
    try:
        app.cli(
            prog="cips3d",
            description="CIPS-3D: a 3D-aware image generator that learns from ordinary single-view pictures.",
            args=args,
            config=(
                conf.PositionalMetavarFromFieldName,
                conf.DisallowNone,
                conf.FlagCreatePairsOff,
            ),
        )
    except (UserError, OSError, RuntimeError, MemoryError) as error:
        line = error_line(error)
        if line is None:
            raise
        print(f"cips3d: error: {line}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("cips3d: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def error_line(error: Exception) -> str | None:
    """What to tell of an error that is no fault of the program's, in one line; None of any other."""
    if isinstance(
        error, UserError
    ):  # of one from a data loading process, which torch wraps in a traceback, the last line
        return str(error).strip().splitlines()[-1].removeprefix("cips3d.errors.UserError: ")
    if isinstance(error, OSError):  # what no library function has put into words of its own
        return f"{'' if error.filename is None else f'{error.filename}: '}{error.strerror or error}"
    return machine_fault(error)

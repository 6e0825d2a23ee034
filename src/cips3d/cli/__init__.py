"""The command line: finds the verb, parses its options, calls the library and prints.

A verb's module is imported when the verb is called, and the library (torch, numba …) only when its
options are valid. Every error a user can cause is one line and exit status 2.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial, wraps
from importlib import import_module
from importlib.metadata import version
from typing import Any

from cips3d.errors import UserError, machine_fault

#: The verbs: where each function is, and its summary. Groups of verbs have two words.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("train:demo", "Train on synthetic heads for 3 minutes and show the result."),
    "train": ("train:train", "Train a generator, or resume a run."),
    "sample": ("render:sample", "Generate images of random subjects."),
    "render": ("render:render", "Render subjects from many sides, as a grid or a video."),
    "view": ("view:view", "Explore a model in the browser."),
    "mesh": ("render:mesh", "Extract a subject as a triangle mesh with vertex colours."),
    "invert": ("invert:invert", "Find the subject and camera of an image."),
    "finetune": ("train:finetune", "Transfer a model to another set of images."),
    "blend": ("blend:blend", "Blend a model with one that was fine-tuned from it."),
    "mix": ("blend:mix", "Mix the styles of subjects."),
    "eval": ("evaluate:evaluate_model", "Measure image quality, consistency and geometry."),
    "info": ("models:info", "Print the size and cost of a preset or a model."),
    "plan": ("plan:plan", "Estimate memory and time of a training run."),
    "data heads": ("data:heads", "Write the embedded heads as a dataset."),
    "data build": ("data:build", "Build a training zip from images or a video."),
    "data check": ("data:check", "Check every image of a dataset."),
    "import-official": ("models:import_official", "Convert an official checkpoint to a model."),
}
DESCRIPTION = "CIPS-3D: a 3D-aware image generator that learns from single-view images."
GROUPS = {"data": "Make, build and check datasets."}
#: How often a waiting thread of GNU's OpenMP looks for work before it sleeps. By its own choice it
#: spins for milliseconds, which takes the processor from our threads and from other programs.
#: Beside a training run on two cores, a video took 54 s instead of 9.
BRIEF_SPIN = "10000"


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `cips3d`; `args` are by default those of the process."""
    # a library's advice to developers is noise to users, but not why their GPU is unused
    warnings.filterwarnings("ignore", module=r"(?!cips3d)")
    warnings.filterwarnings("default", message="CUDA initialization")
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is imported
        os.environ.setdefault("GOMP_SPINCOUNT", BRIEF_SPIN)
    if isinstance(sys.stdout, io.TextIOWrapper):  # not every terminal and file can print ²
        sys.stdout.reconfigure(errors="replace")
    try:
        _dispatch(list(sys.argv[1:] if args is None else args))
    except (UserError, OSError, RuntimeError, MemoryError) as error:
        line = _error_line(error)
        if line is None:
            raise
        print(f"cips3d: error: {line}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("cips3d: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _error_line(error: Exception) -> str | None:
    """The line for an error of the user or the machine; None for a fault of the program."""
    if isinstance(error, UserError):  # from a data loading process, torch adds a traceback
        return str(error).strip().splitlines()[-1].removeprefix("cips3d.errors.UserError: ")
    if isinstance(error, OSError):
        return f"{'' if error.filename is None else f'{error.filename}: '}{error.strerror or error}"
    return machine_fault(error)


# ---------------------------------------------------------------- finding the verb
def _dispatch(args: list[str]) -> None:
    group = args[0] if args and args[0] in GROUPS else ""
    words = args[: 1 + bool(group)]
    if words[-1:] in (["--help"], ["-h"]):
        print(overview(group))
        return
    if args[:1] == ["--version"]:
        print(f"cips3d {version('cips3d')}")
        return
    verb = " ".join(words)
    if verb not in VERBS:
        raise UserError(_no_such_verb(verb, group))
    parse(verb, args[len(words) :])()


def overview(group: str = "") -> str:
    """The help page of the program or of a group: one line per verb."""
    verbs = {
        name: summary
        for name, (_, summary) in VERBS.items()
        if (name.startswith(f"{group} ") if group else " " not in name)
    } | ({} if group else GROUPS)
    longest = max(map(len, verbs))
    lines = "\n".join(f"  {name:<{longest}}  {summary}" for name, summary in verbs.items())
    prog = f"cips3d {group}".strip()
    return f"""usage: {prog} VERB ...

{GROUPS.get(group, DESCRIPTION)}

{lines}

{prog} VERB --help explains a verb. cips3d --version prints the version."""


def _no_such_verb(verb: str, group: str) -> str:
    prog = f"cips3d {group}".strip()
    if verb == group:
        return f"{prog} needs a verb; see {prog} --help"
    near = get_close_matches(
        verb, [name for name in (*VERBS, *GROUPS) if name.startswith(group)], 1
    )
    hint = f"did you mean {near[0]}? See" if near else "see"
    return f"there is no verb {verb}; {hint} {prog} --help"


# ---------------------------------------------------------------- its options
def parse(verb: str, args: list[str]) -> Callable[[], None]:
    """The verb's function with its options, validated.

    Raises:
        UserError: for options that it does not have, and values that do not fit.
    """
    import tyro

    from cips3d.cli.options import check_options, unwrapped

    module, name = VERBS[verb][0].split(":")
    function = getattr(import_module(f"cips3d.cli.{module}"), name)
    function.__doc__ = unwrapped(function.__doc__ or "")

    @wraps(function)
    def bound(*values: Any, **options: Any) -> inspect.BoundArguments:
        return inspect.signature(function).bind(*values, **options)

    prog = f"cips3d {verb}"
    conf = tyro.conf
    config = (
        conf.PositionalMetavarFromFieldName,
        conf.DisallowNone,
        conf.FlagCreatePairsOff,
        conf.OmitArgPrefixes,
    )
    errors, page = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(page):
            given = tyro.cli(bound, prog=prog, args=args, config=config)
    except SystemExit as stopped:
        if not stopped.code:
            print(help_page(page.getvalue(), function))
            raise
        raise UserError(f"{parser_line(errors.getvalue())}; see {prog} --help") from None
    check_options(function, given.arguments)
    return partial(function, *given.args, **given.kwargs)


def help_page(text: str, function: Callable[..., None]) -> str:
    """The parser's help with lines that fit the terminal, and the examples of the docstring."""
    width = shutil.get_terminal_size().columns
    lines = [
        line if line[:1] in "╭│╰" else "\n".join(textwrap.wrap(line, width, break_on_hyphens=False))
        for line in text.splitlines()
    ]
    examples = (inspect.getdoc(function) or "").partition("Examples:\n")[2]
    return "\n".join([*lines, "", "examples:", examples.rstrip()])


def parser_line(box: str) -> str:
    """What the parser's box of text says, in one line."""
    sections: list[list[str]] = [[]]
    for line in re.sub(r"\[/?bold\]", "", box).splitlines():
        if line.strip("- ") == "" and "---" in line:
            sections.append([])
        elif line.strip():
            sections[-1].append(line.strip())
    _title, message, *others = [*sections, []]
    text = " ".join(message).rstrip(".")
    name = re.search(r"(?<![\w-])--[\w-]+|(?<=parsing )\w+", text)
    # below a heading: the nearest option, or the option itself, with what it takes
    hint = others[0][1] if others and len(others[0]) > 1 else ""
    if text.startswith("Unrecognized options"):
        if not name:
            return f"there is no place for {text.partition(': ')[2]}"
        near = f"; did you mean {hint.split()[0]}" if hint.startswith("--") else ""
        return f"there is no option {name[0]}{near}"
    if text.startswith("Missing from") and len(message) > 1:
        return f"{message[1].split()[0]} is missing"
    if not name:
        return text
    if text.startswith("invalid choice"):
        value, *choices = [word for word in re.findall(r"'([^']*)'", text) if word != name[0]]
        return f"{name[0]} is {value}; choose from {', '.join(choices)}"
    if text.startswith("Missing value"):
        return f"{name[0]} has no value"
    return f"{name[0]} does not take this; it takes {hint.removeprefix(name[0]).strip()}"

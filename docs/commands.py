"""The commands on the pages, and the small settings with which tests/test_docs.py runs them.

python docs/commands.py        # lists them, as shown and as run
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

#: Commands that no test can run, by their start, and why. Their `cips3d` part is still parsed.
CANNOT_RUN = {
    "accelerate launch": "eight GPUs",
    "torchrun": "two machines",
    "srun": "a SLURM cluster",
    "cips3d view": "a server that runs until it is stopped",
    ".venv-faces/bin/cips3d": "MediaPipe and MobileFaceNet",
}

#: Values that replace those of an option, for any verb or for one. The latter are added where a
#: page does not give the option.
ANY_VERB = {
    "--resolution": "8",
    "--count": "1",
    "--views": "2",
    "--seconds": "1.5",
    "--gpus": "2",
    "--kimg": "0.016",
}
BY_VERB = {
    "demo": {"--minutes": "0.01", "--heads": "1", "--resolution": "8"},
    "train": {"--processes": "1"},
    "finetune": {"--kimg": "0.016", "--processes": "1"},
    "render": {"--fps": "2"},
    "plan": {"--tflops": "1"},
    "eval": {"--metrics": "fd4_heads", "--count": "2"},
    "invert": {"--effort": "0.01"},
    "data heads": {"--count": "2", "--resolution": "8"},
    "mesh": {"--resolution": "8"},
}
#: Inception has to be downloaded; the small network for the embedded heads replaces it.
WORDS = {'metrics=["fid2k"]': 'metrics=["fd4_heads"]', "metrics_kimg=200": "metrics_kimg=1"}
#: The same for the pages' Python.
PYTHON = {
    "resolution=256": "resolution=8",
    "4096": "64",
    "2000:2100, 1900:2200": "20:24, 30:36",
    "frames=120": "frames=2",
}


@dataclass(frozen=True)
class Command:
    """A line of a page that a reader can type in a shell."""

    page: str
    line: int
    text: str

    @property
    def reason(self) -> str | None:
        """Why it cannot be run here; None if it can."""
        return next(
            (reason for start, reason in CANNOT_RUN.items() if self.text.startswith(start)), None
        )

    @property
    def words(self) -> list[str]:
        """The words after `cips3d`."""
        after = re.split(r"(?:^|\s|/)cips3d\s", self.text, maxsplit=1)[1]
        if after.count("'") % 2:  # the quote that ends srun's script
            after = after[: after.rindex("'")]
        return shlex.split(after, comments=True)

    @property
    def verb(self) -> str:
        return " ".join(self.words[: 2 if self.words[0] == "data" else 1])

    def small(self) -> list[str]:
        """The words with small settings."""
        own = BY_VERB.get(self.verb, {})
        groups: list[list[str]] = [[]]
        for word in self.words:
            if word.startswith("--"):
                groups.append([])
            groups[-1].append(WORDS.get(word, word))
        found = []
        for group in groups:
            value = (ANY_VERB | own).get(group[0])
            if self.verb == "data build" and group[0] == "--resolution" and len(group) > 2:
                value = "4 8"  # several, which go into a folder
            found += group if value is None else [group[0], *value.split()]
        for option, value in own.items():
            if option not in found:
                found += [option, value]
        return found


def commands(page: Path) -> list[Command]:
    """The commands of a page's blocks of code, in order."""
    found = []
    for number, line in _logical_lines(page.read_text(encoding="utf-8")):
        if re.match(r"(\S*/)?cips3d\s", line) or re.search(r"-m cips3d\s", line):
            found.append(Command(page.name, number, line))
    return found


def mentions(page: Path) -> list[str]:
    """Commands in the prose of a page, perhaps with placeholders: `cips3d train RUN --seed S`."""
    prose = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    return [" ".join(found.split()) for found in re.findall(r"`cips3d\s([^`]+)`", prose)]


def python(page: Path) -> list[str]:
    """The page's blocks of Python, with small settings."""
    blocks = re.findall(
        r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    for old, new in PYTHON.items():
        blocks = [block.replace(old, new) for block in blocks]
    return blocks


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines of code blocks, fenced or indented, with their numbers; backslashes join lines."""
    fenced, start, pending = False, 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            start = start if pending else number
            pending += line.strip()
            if pending.endswith("\\"):
                pending = pending[:-1]
                continue
            yield start, pending
            pending = ""


if __name__ == "__main__":
    for page in PAGES:
        for command in commands(page):
            print(f"{command.page}:{command.line}: {command.text}")
            print(f"    {command.reason or shlex.join(['cips3d', *command.small()])}")

"""The one exception for faults that a user can fix; the command line prints it as one line."""

_NOT_ENOUGH_MEMORY = (
    "not enough memory; use smaller images, batches or networks "
    "(cips3d plan and cips3d info print what they need)"
)
_DATA_WORKER = (
    "workers: a data loading process died, which happens when memory or shared memory "
    "(docker's --shm-size) runs out; provide more, or set workers=0"
)


class UserError(Exception):
    """A fault in what the user gave, as one line: the file or option, what is wrong, what to do."""


def machine_fault(error: Exception) -> str | None:
    """The line for an error of the machine, such as a lack of memory; None for others."""
    text = str(error)
    if text.startswith("DataLoader worker"):
        return _DATA_WORKER
    # on CPUs, torch reports a lack of memory in words only
    words = ("can't allocate memory", "Storage size calculation overflowed", "out of memory")
    short = isinstance(error, MemoryError) or any(word in text for word in words)
    return _NOT_ENOUGH_MEMORY if short else None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, printable."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable((text or type(error).__name__).splitlines()[0])


def printable(text: object) -> str:
    """`text` on one line, whatever bytes a file name contains."""
    return "".join(c if c.isprintable() else "?" for c in str(text))

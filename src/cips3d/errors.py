"""What the user can mend: the one exception for it, what to say of others; the command line prints a line, exit status 2."""

import torch

_NOT_ENOUGH_MEMORY = (
    "there is not enough memory for this; take smaller pictures, batches or networks "
    "(cips3d plan and cips3d info tell what they need)"
)
_DATA_WORKER = (
    "workers: a data loading process has died, as one does where memory or shared memory (docker's --shm-size) is short; "
    "give more of it, or set workers=0"
)


class UserError(Exception):
    """A fault in a file, an option or a value that the user gave.

    The message is one line that names the file or option, says what is wrong and what to do about it.
    """


def machine_fault(error: Exception) -> str | None:
    """What to say of an error whose reason is the machine: a lack of memory, which torch tells of CPUs in words only."""
    if str(error).startswith("DataLoader worker"):
        return _DATA_WORKER
    words = ("can't allocate memory", "Storage size calculation overflowed", "out of memory")
    short = isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        word in str(error) for word in words
    )
    return _NOT_ENOUGH_MEMORY if short else None


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return shown((text or type(error).__name__).splitlines()[0])


def shown(text: object) -> str:
    """`text` as it can be printed on one line, whatever bytes a file name holds."""
    return "".join(c if c.isprintable() else "?" for c in str(text))

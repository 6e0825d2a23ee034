"""What the user can mend: the one exception for it, and a lack of memory; the command line prints a line, exit status 2."""

import torch

#: What to say where memory was the reason.
NOT_ENOUGH_MEMORY = (
    "there is not enough memory for this; take smaller pictures, batches or networks "
    "(cips3d plan and cips3d info tell what they need)"
)


class UserError(Exception):
    """A fault in a file, an option or a value that the user gave.

    The message is one line that names the file or option, says what is wrong and what to do about it.
    """


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was the reason of an error, which torch tells of CPUs in words only."""
    words = ("can't allocate memory", "Storage size calculation overflowed", "out of memory", "overflow when unpacking long")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)

"""The one exception a user may see: it is printed as a single line and ends with exit code 2."""

import sys

from workbench.passwords import masked

# What allocators say in plain RuntimeErrors: torch's on a CPU, cuBLAS, Apple's.
NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "_ALLOC_FAILED")


class UserError(Exception):
    """Something the user can mend: a wrong key, row, file or setting.

    The message is one line that names the file, key or row, says what was wrong and how to mend it.
    It shows no password of a database address.
    """

    def __init__(self, message: str) -> None:
        super().__init__(masked(" ".join(message.split())))


class StageError(Exception):
    """A stage in a process of its own ended with an error and has said why.

    Attributes:
        code: its exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


def out_of_memory(error: Exception) -> bool:
    """Return whether an error is one of memory, on whatever device."""
    torch = sys.modules.get("torch")  # an error of its own was not raised before it was loaded
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)

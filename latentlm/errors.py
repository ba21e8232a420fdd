"""What a user can mend, and what a user should know: one error, one warning.

Place in the flow: below everything. The command line shows either as one line on stderr; a UserError also ends the
command with exit code 2. Any other exception is a bug of ours and keeps its traceback.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


class UserError(ValueError):
    """Wrong input: one line that names the file, key or value."""


class Notice(UserWarning):
    """The input is used, but not all of it or not as written: one line that says how."""


def notice(message: str) -> None:
    """Tell the user: a `Notice` for Python's `warnings`, a line on stderr from the command line."""
    warnings.warn(message, Notice, stacklevel=3)


@contextmanager
def notices_as_lines() -> Iterator[None]:
    """Context manager: shows each `Notice` as one line on stderr, any other warning as Python shows it."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", Notice)
        warnings.showwarning = partial(_show, warnings.showwarning)
        yield


def _show(show: Callable, message: Warning | str, category: type[Warning], *place: Any) -> None:
    if issubclass(category, Notice):
        print(f"latentlm: {message}", file=sys.stderr)
    else:
        show(message, category, *place)

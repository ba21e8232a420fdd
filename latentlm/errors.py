"""The exception and the warning that are meant for users.

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
    """Raised for wrong input. The message is one line that names the file, key or value."""


class Notice(UserWarning):
    """Warns that input is used only in part or not as written. The message is one line."""


def notice(message: str) -> None:
    """Warn with a `Notice` through Python's `warnings`; the command line prints it as a line on stderr."""
    warnings.warn(message, Notice, stacklevel=3)


@contextmanager
def notices_as_lines() -> Iterator[None]:
    """Context manager: shows each `Notice` once, as a line on stderr, and other warnings as Python shows them."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", Notice)
        warnings.showwarning = partial(_show, warnings.showwarning, set())
        yield


def _show(show: Callable, printed: set[str], message: Warning | str, category: type[Warning], *place: Any) -> None:
    if issubclass(category, Notice):
        if str(message) not in printed:
            printed.add(str(message))
            print(f"latentlm: {message}", file=sys.stderr)
    else:
        show(message, category, *place)

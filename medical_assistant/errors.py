"""Errors that a user can act on, and how a script reports them."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a full quota, a limit on the size of files


class UserError(Exception):
    """Bad input or a missing piece. Its text is one line: what is wrong, then what to do."""


class AdapterError(UserError):
    """The adapter is missing, broken, or belongs to another base model or prompt."""


class EngineError(UserError):
    """The engine could not start, or stopped while answering."""


def without_text(error: BaseException) -> str:
    """Return the type of `error` and where it was raised: its message may quote what a person wrote."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} in {frames[-1].name}, {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def run_script(main: Callable[[Sequence[str] | None], int | None]) -> NoReturn:
    """Run `main(sys.argv[1:])` and exit with its status.

    Exit status: 0 done, 2 bad input or a full disk (one line on stderr), 130 interrupted. With `--debug`
    on the command line the traceback is shown instead of the line.
    """
    argv = sys.argv[1:]
    try:
        sys.exit(main(argv) or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except UserError as error:
        if "--debug" in argv:
            raise
        _fail(str(error))
    except OSError as error:
        if "--debug" in argv or error.errno not in NO_SPACE:
            raise
        place = f" of {error.filename}" if error.filename else ""
        _fail(f"The disk{place} is full: make room, then run the same command again.")


def _fail(text: str) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":  # of several processes, one
        print(f"error: {text}", file=sys.stderr)  # noqa: T201
    sys.exit(2)

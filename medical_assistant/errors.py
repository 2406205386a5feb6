"""Errors that a user can act on, and how a script reports them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


class UserError(Exception):
    """Bad input or a missing piece. Its text is one line: what is wrong, then what to do."""


class AdapterError(UserError):
    """The adapter is missing, broken, or belongs to another base model or prompt."""


class EngineError(UserError):
    """The engine could not start, or stopped while answering."""


def run_script(main: Callable[[Sequence[str] | None], int | None]) -> NoReturn:
    """Run `main(sys.argv[1:])` and exit with its status.

    Exit status: 0 done, 2 bad input (one line on stderr), 130 interrupted. With `--debug` on the
    command line the traceback is shown instead of the line.
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
        if os.environ.get("RANK", "0") == "0":  # of several processes, one
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)

"""Errors of Gradio's event handlers, without the words of the person who asked.

Gradio 6.31 prints the traceback of whatever a handler raises, and a call with too few arguments raises a ValueError
that quotes the others: the question would stand in the log.
"""

from __future__ import annotations

import logging
import sys

from medical_assistant.errors import without_text

logger = logging.getLogger(__name__)


class _Traceback:
    """What Gradio's queue uses of the module `traceback`."""

    @staticmethod
    def print_exc() -> None:
        error = sys.exc_info()[1]
        if error is not None:
            logger.error("%s", without_text(error))


def keep_text_out_of_errors() -> None:
    """Make Gradio log the type and the place of an error in place of printing its traceback."""
    from gradio import queueing

    queueing.traceback = _Traceback  # type: ignore[assignment]  # there is no setting for it

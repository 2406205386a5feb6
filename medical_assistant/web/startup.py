"""The model that the app starts with: what was asked for, else what can be had, and the line that says so."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from medical_assistant.errors import UserError
from medical_assistant.files import ASSETS

if TYPE_CHECKING:
    from medical_assistant.engines.base import Engine
    from medical_assistant.library.passages import Library
logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# For the Hub to send an adapter. The base needs some seconds after that: the page is there within a minute.
HUB_TIMEOUT_S = 45.0


def bundled_folder(model: str) -> Path:
    """Return where the adapter that comes with a preset would lie; most presets have none."""
    return ASSETS / "adapters" / model


def in_background(function: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """Call `function` in a thread that may be left behind: it does not keep the process from its end."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(function(*arguments))
        except Exception as error:  # it belongs to whoever waits
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def load_library(names: str) -> Library | None:
    """Return the library of `names`, as `library.opening.open_libraries`; "none" returns None."""
    from medical_assistant.library.opening import open_libraries

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs each index that it builds
    return None if names.strip() == "none" else open_libraries(names)


def load_model(
    model: str, adapter: str | None, engine: str, timeout_s: float = HUB_TIMEOUT_S
) -> tuple[Engine, str | None]:
    """Return the running engine, and None or the sentence for the page that says why it is not as asked for.

    Where an adapter cannot be had from the Hub now (no connection, no answer in `timeout_s`, 429, 5xx, a broken
    transfer, a full disk), its cached revision serves, else the adapter bundled with the model, else the base alone.
    An adapter that is wrong (no such name, no permission, another base or prompt, broken as it was published) has no
    substitute: the base alone serves, so that a typing error does not look like an answer of the adapter.

    Raises `UserError` when the base does not load either.
    """
    from medical_assistant.engines.load import load_engine
    from medical_assistant.hub.errors import HubUnavailable

    if adapter is None:
        return load_engine(model, None, engine), "No adapter was chosen: start with --adapter to add one."
    try:
        found, notice = find_in_time(adapter, timeout_s)
        return load_engine(model, found, engine), notice
    except UserError as error:
        problem = error
    bundled = bundled_folder(model)
    if isinstance(problem, HubUnavailable) and bundled.is_dir():
        reason = str(problem).rstrip(".")
        notice = f"The adapter {adapter} could not be loaded ({reason}): serving the bundled adapter."
        logger.warning("%s", notice)
        try:
            return load_engine(model, os.path.relpath(bundled), engine), notice
        except UserError as error:
            logger.warning("%s", error)
    try:
        base = load_engine(model, None, engine)
    except UserError:
        raise problem from None  # the base does not load either: the adapter was not the cause
    logger.warning("%s Serving the base model alone.", problem)
    return base, str(problem)


def find_in_time(adapter: str, timeout_s: float) -> tuple[str, str | None]:
    """Return what `load_engine` takes for `adapter`, and None or a sentence on the revision that was found.

    A Hub repository becomes `user/name@commit`, now in the cache; a folder, and what is neither, stays as it is.
    A download that takes longer than `timeout_s` goes on in the background for the next start.
    Raises as `hub.pull.pull_adapter`.
    """
    from medical_assistant.hub.errors import HubUnavailable
    from medical_assistant.hub.pull import cached_commit, pull_adapter, split_revision

    if Path(adapter).is_dir():
        return adapter, None
    try:
        name, _ = split_revision(adapter)
    except UserError:  # load_engine says what is wrong with it
        return adapter, None
    known = cached_commit(adapter)  # before the download notes a new one
    pull = in_background(pull_adapter, adapter)  # huggingface_hub can wait for ever on a very slow connection
    logger.info("Waiting for the Hub to send %s, %.0f s at most", adapter, timeout_s)
    if wait([pull], timeout_s).done:
        found, notice = pull.result(), pull.result().notice
    else:
        notice = f"The Hub has not sent {name} in {timeout_s:.0f} s"
        if known is None:
            raise HubUnavailable(f"{notice}, the download goes on: start again in some minutes.")
        found = pull_adapter(name, known, cached_only=True)
    if notice:
        notice = f"Serving {name} at its cached revision {found.commit[:12]}, perhaps not the newest ({notice})."
        logger.warning("%s", notice)
    return f"{name}@{found.commit}", notice

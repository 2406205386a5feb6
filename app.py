"""Chat with the medical assistant in the browser.

    python app.py                                         # the embedded model and the bundled adapter
    python app.py --adapter user/name@revision            # an adapter from the Hub
    python app.py --model tinyllama-1.1b --adapter none   # another base model alone
    python app.py --library shipped,my_pages              # the library that comes with it, and a folder of pages

Serves the page on http://127.0.0.1:7860, and the same answers to programs:

    gradio_client.Client("http://127.0.0.1:7860").predict("What is anaemia?", "Library", api_name="/chat")

"Library" is the default, "Fine-tuned" and "Base" are the models; /library gives the sources as data.

GET /healthz says whether the model answers; with --metrics, GET /metrics counts answers for Prometheus.
A Space sets MODEL, ADAPTER, ENGINE, LIBRARY, METRICS, AUTH (or AUTH_FILE), GRADIO_SERVER_NAME and GRADIO_SERVER_PORT
in its environment; the command line wins.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

if os.environ.get("SPACES_ZERO_GPU"):
    import spaces  # noqa: F401  # ZeroGPU patches torch: before everything else

from medical_assistant.errors import UserError, run_script
from medical_assistant.settings import parse_settings, setting
from medical_assistant.web.limits import ClientKeys, ClientLimits
from medical_assistant.web.login import load_login
from medical_assistant.web.startup import bundled_folder, load_library, load_model

if TYPE_CHECKING:
    from medical_assistant.chat.confidence import Calibration
    from medical_assistant.engines.base import Engine

DEFAULT_MODEL = "smollm2-135m"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AppSettings:
    model: str = setting(
        os.environ.get("MODEL") or DEFAULT_MODEL, "preset of assets/models.yaml, Hub id, folder or .gguf file"
    )
    adapter: str = setting(
        os.environ.get("ADAPTER") or "bundled",
        "adapter folder, Hub repository (user/name or user/name@revision), 'none', or 'bundled': the one "
        "that comes with the model's preset",
    )
    engine: str = setting(
        os.environ.get("ENGINE") or "auto", "what runs the model", ["auto", "llama_cpp", "transformers"]
    )
    library: str = setting(
        os.environ.get("LIBRARY") or "shipped",
        "what is answered from, several with commas between: 'shipped' (the library that comes with the app), a folder "
        "of Markdown pages, a library that `data_prep.py library` built, or a data set of the Hub (user/name); 'none': "
        "the models alone answer",
    )
    host: str = setting(os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1", "address to listen on")
    port: str = setting(os.environ.get("GRADIO_SERVER_PORT") or "7860", "port to listen on")
    metrics: bool = setting(
        os.environ.get("METRICS", "").lower() in ("1", "true", "yes", "on"),
        "serve counts of answers on /metrics, without text or addresses",
    )
    auth: str = setting(
        os.environ.get("AUTH") or os.environ.get("AUTH_FILE") or "none",
        "who may use the app: 'none' (everybody), a file that `python -m medical_assistant.web.login` writes, or "
        "'huggingface' on a Space",
    )
    answers_at_once: int = setting(2, "answers that one client may have at the same time")
    questions_per_minute: int = setting(20, "questions that one client may ask in a minute")


def main(argv: Sequence[str] | None = None) -> int:
    settings = parse_settings(AppSettings, argv, __doc__)
    port = check_port(settings.host, settings.port)
    limits = ClientLimits(settings.answers_at_once, settings.questions_per_minute)
    # On a Space the proxy names the client; elsewhere anybody could.
    keys = ClientKeys(trust_forwarded="SPACE_ID" in os.environ)
    login = load_login(settings.auth, keys)
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("medical_assistant").setLevel(logging.INFO)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")  # its own counts of 10,000 calls, kept in memory
    with ThreadPoolExecutor(2) as pool:
        # The model loads in its own process, and the library is read, while gradio is imported here (3 s).
        opening = pool.submit(load_library, settings.library)
        loading = pool.submit(load_model, settings.model, choose_adapter(settings), settings.engine)
        from medical_assistant.chat.assistant import Assistant
        from medical_assistant.web import page, server
        from medical_assistant.web.requests import RequestTracker

        engine, problem = loading.result()
    try:
        library = opening.result()
        tracker = RequestTracker(limits, keys)
        assistant = Assistant(engine, problem, read_calibration(engine), library)
        demo = page.build_page(assistant, tracker)
        if login:
            login.add_button(demo)
        gc.collect()
        gc.freeze()  # all this stays: later collections would hold every answer up for 0.2 s to look through it
        server.keep_text_out_of_errors()
        server.end_on_sigterm(engine, tracker)
        demo.launch(
            server_name=settings.host,
            server_port=port,
            app_kwargs=server.app_kwargs(engine, tracker, settings.metrics, login),
            **page.launch_options(),
            **(login.launch_options() if login else {}),
        )
    finally:
        engine.close()
    return 0


def check_port(host: str, text: str) -> int:
    """Return the port. Raises `UserError` when one cannot listen on it; asked before the model is loaded."""
    port = int(text) if text.isdecimal() else 0
    if not 0 < port < 65_536:
        raise UserError(f"{text!r} is not a port: use a number from 1 to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        raise UserError(
            f"Cannot listen on {host} port {port} ({error.strerror}): stop what uses it, or give another --port."
        ) from error
    return port


def choose_adapter(settings: AppSettings) -> str | None:
    """Return the adapter to load: as given, the one bundled with the model, or None."""
    if settings.adapter == "none":
        return None
    if settings.adapter == "bundled":
        folder = bundled_folder(settings.model)
        expected = settings.model == DEFAULT_MODEL or folder.is_dir()
        return os.path.relpath(folder) if expected else None
    return settings.adapter


def read_calibration(engine: Engine) -> Calibration | None:
    """Return the calibration of the loaded adapter. A broken one is logged: the page starts without confidence."""
    from medical_assistant.chat.confidence import find_calibration

    try:
        return find_calibration(engine.info)
    except UserError as error:
        logger.warning("%s Confidence is not shown.", error)
        return None


if __name__ == "__main__":
    run_script(main)

"""GGUF files are checked before llama.cpp's C++ reads them: every count, length, type and place against the file.

The header is read by gguf-py in a process of its own (`gguf_header`), with limits of memory and time: a hostile one
costs that process, and the user one line. It takes 0.3 s, most of them the start of Python and numpy.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from medical_assistant.errors import AdapterError, EngineError

MODULE = "medical_assistant.models.gguf_header"
TIMEOUT_S = 120.0  # a header takes a fraction of a second, a busy machine a few
_SOURCE_ROOT = Path(__file__).resolve().parents[2]


def check_gguf(path: Path) -> None:
    """Raise `EngineError` when `path` is no sound GGUF of a model: before llama.cpp or anything else loads it."""
    fault = _find_fault("model", path)
    if fault:
        raise EngineError(f"{path} is no sound GGUF ({fault}): download it again.")


def check_lora_gguf(path: Path) -> None:
    """Raise `AdapterError` when `path` is no sound GGUF of a LoRA: pairs of matrices of one rank."""
    fault = _find_fault("lora", path)
    if fault:
        raise AdapterError(f"{path} is truncated or broken ({fault}): train or download the adapter again.")


def _find_fault(kind: str, path: Path) -> str | None:
    search_path = os.pathsep.join(filter(None, [str(_SOURCE_ROOT), os.environ.get("PYTHONPATH")]))
    # Each thread of BLAS reserves memory, and there is nothing to compute.
    environment = {**os.environ, "PYTHONPATH": search_path, "OPENBLAS_NUM_THREADS": "1"}
    try:
        path.open("rb").close()
        child = subprocess.run(
            [sys.executable, "-m", MODULE, kind, str(path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            timeout=TIMEOUT_S,
        )
        fault = json.loads(child.stdout)["fault"]
        return " ".join(str(fault).split()) if fault else None
    except OSError as error:
        return str(error.strerror or error)
    except subprocess.TimeoutExpired:
        return f"its header was not read within {TIMEOUT_S:g} s"
    except ValueError:  # it died: no line of JSON
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        return lines[-1][:160] if lines else f"the process that read its header ended with status {child.returncode}"

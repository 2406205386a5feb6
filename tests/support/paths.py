"""Where the project lies, and its scripts as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load_script(name: str) -> ModuleType:
    """Return a script, such as "evaluate" or "benchmarks/load", as a module of another name.

    Of another, because "evaluate" may be Hugging Face's package by now.
    """
    spec = importlib.util.spec_from_file_location(f"script_{name.replace('/', '_')}", ROOT / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

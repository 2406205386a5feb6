"""What the seed project claimed, beside what is measured here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from medical_assistant.evaluation.report.report_parts import (
    SPACE,
    Paragraph,
    Section,
    Table,
    is_number,
    number,
)
from medical_assistant.models.presets import ASSETS

CLAIMS_FILE = ASSETS / "evaluation" / "seed_claims.yaml"


def seed_claims(path: Path = CLAIMS_FILE, root: Path = ASSETS.parent) -> list[dict[str, Any]]:
    """Return the seed project's claims with what was measured here.

    Keys: `metric`; `claimed` and `measured`, relative changes (-0.131 is 13.1 % lower), `measured` None where the
    artefact under `root` is missing or has no such figure; `figures`, what the measured change is of; `note`; `source`.
    """
    claims = yaml.safe_load(path.read_text(encoding="utf-8"))["claims"]
    return [_measured(claim, root) for claim in claims]


def _measured(claim: Mapping[str, Any], root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        "metric": claim["metric"],
        "claimed": claim["claimed"],
        "measured": None,
        "figures": "",
        "note": str(claim.get("note") or "").strip(),
        "source": claim["source"],
    }
    where = claim.get("measured") or {}
    try:
        sweep = json.loads((root / where["file"]).read_text(encoding="utf-8"))
        values = {row["experiment"]: float(row[where["key"]]) for row in sweep["experiments"]}
        before, after = values[where["from"]], values[sweep["best"]]
        found["measured"] = after / before - 1
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return found
    found["figures"] = f"{number(after, 4)} ({sweep['best']}) against {number(before, 4)} ({where['from']})"
    return found


def claims_section(claims: Sequence[Mapping[str, Any]]) -> Section:
    """The table of `seed_claims`."""
    section = Section("claims", "The seed project's claims")
    section.add(
        Paragraph(
            "This project grew out of a seed project that stated improvements. Each claim that is known stands beside "
            "what was measured here. They are not the same experiment, so neither proves or refutes the other."
        )
    )
    if not claims:
        section.not_run = "No claim of the seed project is known."
        return section
    rows = []
    for claim in claims:
        figures = f": {claim['figures']}" if claim.get("figures") else ""
        measured = _change(claim.get("measured")) + figures
        told = [str(claim.get(key) or "") for key in ("source", "note")]
        rows.append([str(claim["metric"]), _change(claim.get("claimed")), measured, *told])
    columns = ("What", "Claimed", "Measured here", "Claimed in", "Note")
    section.add(Table("Claims of the seed project and what was measured", columns, rows, words=(0, 1, 2, 3, 4)))
    return section


def _change(value: Any) -> str:
    """-0.131 -> "13.1 % lower"."""
    if not is_number(value):
        return str(value) if value else "not measured"
    if round(abs(value), 3) == 0:
        return "no change"
    return f"{number(abs(100 * value), 1)}{SPACE}% {'lower' if value < 0 else 'higher'}"

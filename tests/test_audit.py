"""The audit of the dependencies: found, nothing found, and nobody to ask are three different things."""

from __future__ import annotations

import runpy

from tests.support.paths import ROOT

AUDIT = runpy.run_path(str(ROOT / ".ci" / "audit.py"))
SKIPPED = {"name": "b", "skip_reason": "Dependency not found on PyPI and could not be audited: b (1.0)"}


def test_a_vulnerability_fails_the_audit():
    found = {"name": "a", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
    code, text = AUDIT["verdict"]([found, SKIPPED])
    assert code == 1 and "a 1.0: PYSEC-1, fixed in 1.1" in text and "1 known vulnerabilities in 1 packages" in text


def test_no_vulnerability_passes_and_says_what_was_not_asked():
    code, text = AUDIT["verdict"]([{"name": "a", "version": "1.0", "vulns": []}, SKIPPED])
    assert code == 0 and "0 known vulnerabilities in 1 packages, 1 could not be asked about" in text


def test_without_an_answer_nothing_is_claimed():
    for dependencies in ([], [SKIPPED]):
        code, text = AUDIT["verdict"](dependencies)
        assert code == 0 and text.startswith("Not audited")

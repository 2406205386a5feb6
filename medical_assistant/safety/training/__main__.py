"""Train the safety classifiers, measure them and write their files.

    python -m medical_assistant.safety.training [triage] [misuse] [output] --data FOLDER

Without a name all three are trained. `--data` is the folder of the public files that `training_data/settings.yaml`
names; the rows written for this are in `training_data`. The files that are written hold hashed weights, no text. Needs
scikit-learn; the application does not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from medical_assistant.errors import UserError, run_script
from medical_assistant.files import write_whole
from medical_assistant.safety import SAFETY_ASSETS
from medical_assistant.safety.misuse import CLASSIFIER_FILE, load_misuse_classifier
from medical_assistant.safety.training import misuse, output, triage
from medical_assistant.safety.training.fitting import TRAINING_DATA, sources

SETTINGS = TRAINING_DATA / "settings.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m medical_assistant.safety.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="triage, misuse or output")
    parser.add_argument("--data", type=Path, required=True, help="folder of the public files")
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="settings of the trainings")
    parser.add_argument("--output", type=Path, default=SAFETY_ASSETS, help="folder for the classifiers' files")
    arguments = parser.parse_args(argv)
    settings = yaml.safe_load(arguments.settings.read_text(encoding="utf-8"))
    unknown = set(arguments.names) - set(settings)
    if unknown:
        raise UserError(f"There is no classifier {', '.join(sorted(unknown))}: choose from {', '.join(settings)}.")
    for name in arguments.names or settings:
        module = {"triage": triage, "misuse": misuse, "output": output}[name]
        path, own = arguments.output / f"{name}_classifier.json", settings[name]
        rows = module.rows(own, arguments.data)
        content = module.train(rows, own)
        content["details"] = {"trained_on": sources(rows), **content["details"]}
        write_whole(path, json.dumps(content, separators=(",", ":")) + "\n")
        if path.resolve() == CLASSIFIER_FILE:  # the other half is measured with the application's own code
            load_misuse_classifier.cache_clear()
            content["details"] |= misuse.measure(own, arguments.data)
            write_whole(path, json.dumps(content, separators=(",", ":")) + "\n")
        sys.stdout.write(json.dumps({name: content["details"]}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_script(main)

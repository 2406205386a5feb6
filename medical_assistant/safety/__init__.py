"""What stands between a person and harm: rules and small classifiers around the model, none of which needs it."""

from pathlib import Path

SAFETY_ASSETS = Path(__file__).resolve().parents[2] / "assets" / "safety"

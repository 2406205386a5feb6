"""The rooms of `evaluate.py`: answers, metrics, comparison, knowledge, safety, confidence, report."""

"""Trains the three safety classifiers: python -m medical_assistant.safety.training."""

"""Scores and the statistics that say what they are worth."""

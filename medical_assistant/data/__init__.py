"""Rows of questions and answers: reading, cleaning, splitting, the one record."""

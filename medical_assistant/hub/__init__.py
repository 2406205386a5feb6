"""Adapters on the Hugging Face Hub: pulling, pushing, and what can go wrong."""

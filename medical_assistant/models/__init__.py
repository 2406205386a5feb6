"""Base models, chat templates, the adapter folder, GGUF files."""

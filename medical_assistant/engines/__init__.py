"""What runs a model: llama.cpp, transformers, or any OpenAI-compatible server."""

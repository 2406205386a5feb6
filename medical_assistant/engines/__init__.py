"""What runs a model: llama.cpp in a child process, or transformers."""

"""Settings, data, trainer and sweep of a fine-tuning run."""

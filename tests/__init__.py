"""A package of its own: some installed packages (textstat) bring a top-level `tests` as well."""

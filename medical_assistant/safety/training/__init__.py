"""The training of the safety classifiers. The application never imports it."""

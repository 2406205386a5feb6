"""Readers of the formats that a library can be made of: each gives documents, or says in one line why it cannot."""

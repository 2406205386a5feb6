"""The report of an evaluation: one page, one Markdown file."""

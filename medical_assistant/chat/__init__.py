"""One answer, from a question that has been screened to text that may be shown."""

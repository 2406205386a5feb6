"""Is the fine-tuned model better than its base? Answers, scores, judges, a report."""

"""What was used, lost and wasted: totals, text, page, usage records."""

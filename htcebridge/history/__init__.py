"""What has been: one row and a few counts for each cycle, in SQLite."""

"""The outer world of Slurm: its commands, and what they say. Parsing is pure."""

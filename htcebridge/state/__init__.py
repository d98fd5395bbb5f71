"""What one cycle leaves for the next: memory, ledger, lock."""

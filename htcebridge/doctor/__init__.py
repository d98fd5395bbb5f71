"""Is everything in place, here and now."""

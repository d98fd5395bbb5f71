"""One way through a cycle: observe, learn, situation, plan, act, record."""

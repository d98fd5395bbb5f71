"""What runs on a node: its script and startd configuration, its checks, marks, logs and ads."""

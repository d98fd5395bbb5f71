"""The pure core: what to submit, cancel and drain. Imports nothing but `model` and `units`."""

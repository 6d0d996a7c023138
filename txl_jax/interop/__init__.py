"""Checkpoints of other implementations, and our own export format."""

"""The model: pure Flax Linen modules, and plain functions for the maths."""

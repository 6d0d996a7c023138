"""Evaluation: the loss of a text under a trained model."""

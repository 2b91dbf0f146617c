"""Measurements of a user's machine and runs."""

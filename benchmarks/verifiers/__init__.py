"""Verifiers and sandboxes: speed, agreement with people, attacks, forgeries and honest answers."""

"""What is known of a folder of runs and sweeps: an index of them, a search through it, notes, and what they occupy."""

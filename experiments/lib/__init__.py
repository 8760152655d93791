"""Data, models, checkpoints, progress and reports: everything that touches files or the terminal."""

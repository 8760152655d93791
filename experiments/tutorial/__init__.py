"""The report of the tutorial, `python -m experiments.tutorial`: a folder for each part, a script for each figure or table."""

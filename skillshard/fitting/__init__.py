"""Fit mixing laws to finished runs with SciPy, and propose weights for the next run."""

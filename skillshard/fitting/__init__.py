"""Fits: laws that tell losses from draws or from mixtures, and the weights that they propose. Offline, by SciPy."""

"""Comparisons of policies: trainings of a proxy, or finished runs, paired by seed, with a verdict for each policy."""

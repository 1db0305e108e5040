"""Skills as clusters of loss trajectories."""

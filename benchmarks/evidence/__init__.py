"""The parts of `benchmarks/skillit.py`: settings, methods, trainings and the tables of the losses."""

"""What `benchmarks/skillit.py` measures: settings, methods, trainings, and what is made of their losses."""

"""Faults against a live server, and what its clients saw of them: planned by a seed, done by signals, judged by oracles."""

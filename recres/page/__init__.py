"""The parts of an HTML page about runs: markup, charts, and what is said of a run."""

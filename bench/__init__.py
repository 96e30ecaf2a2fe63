"""Side-by-side benchmarks: `python -m bench.cpu` compares the engine with PyTorch on the CPU."""

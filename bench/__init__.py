"""Side-by-side benchmarks with PyTorch: `python -m bench.cpu`, and on a GPU `bench.cuda`."""

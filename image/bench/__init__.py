"""Figures of the image: `nodeos image bench` measures them and writes them into docs/benchmarks.md."""

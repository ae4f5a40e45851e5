"""What measures bdnfs from outside: local upstreams, a model of real shape, the benchmarks."""

"""What only a GPU can show, in stages (`python -m benchmarks.gpu`), and forecasts of it without one."""

"""The `trainer` command: the only place that reads argv and the environment, and that prints errors."""

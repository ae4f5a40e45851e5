"""From a config.py to the one project it holds."""

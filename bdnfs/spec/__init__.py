"""What the user declares (sources, patterns, places) and what the node is told (its config)."""

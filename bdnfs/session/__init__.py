"""What the commands do: opens each layer, owns the nursery. The wiring is the architecture."""

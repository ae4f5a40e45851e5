"""Words everything else is built from: errors, units, ranges. Standard library only."""

"""What one node of a cluster serves its peers and its own fills: chunks, and what it knows of itself."""

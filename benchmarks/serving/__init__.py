"""What one node can send, and what that costs the job that runs beside it."""

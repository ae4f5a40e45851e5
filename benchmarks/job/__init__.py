"""The trainer's example job, from its push to its last step."""

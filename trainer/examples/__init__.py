"""What `trainer init` hands out. Files as they are: nothing here is imported by the trainer."""

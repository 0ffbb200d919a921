"""What comes after training: `python -m tools.<name>`."""

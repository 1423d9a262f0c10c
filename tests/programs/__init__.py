"""Real programs at work on a mount."""

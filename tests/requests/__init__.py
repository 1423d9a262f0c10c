"""What the kernel asks, counted."""

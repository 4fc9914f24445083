"""What a client does: tasks, rows, and one forward pass for many clients."""

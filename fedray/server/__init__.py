"""The server's blocks."""

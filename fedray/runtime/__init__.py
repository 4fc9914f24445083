"""Where clients run: in this process, or in actors on Ray."""

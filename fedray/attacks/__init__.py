"""What a server, or whoever listens, can find out from what crosses a cut."""

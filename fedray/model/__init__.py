"""The model: stem, blocks and head, the sites adapters attach to, and what a step of it costs."""

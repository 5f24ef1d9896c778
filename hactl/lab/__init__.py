"""A mail cluster in one process: relayd emulated, fake nodes, the demo."""

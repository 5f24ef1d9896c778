"""Runs: the loop around the core, with the sockets, processes and files it needs."""

"""hactl: health checks and failover for relayd(8) tables."""

__version__ = "0.1.0"
PROTOCOL = 1  # of the control socket, in every request and answer

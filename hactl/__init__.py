"""hactl: health checks and failover for relayd(8) tables."""

__version__ = "0.1.0"

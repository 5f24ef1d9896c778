"""All that knows relayd: running relayctl, reading its output and relayd.conf."""

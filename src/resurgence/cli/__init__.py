"""The command `resurgence`."""

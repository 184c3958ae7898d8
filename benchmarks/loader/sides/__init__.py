"""The sides, each a loader behind the same few calls, in the environment that it is installed in: see `base`."""

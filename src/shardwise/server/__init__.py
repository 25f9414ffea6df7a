"""The server: what clients of other servers' interfaces point at. Knows no torch; the ranks are the engine's."""

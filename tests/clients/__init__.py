"""Real third-party libraries, as their users hold them."""

"""The page in a real browser: what it must stand, and pictures of what it looks like. Needs the extra `browser`."""

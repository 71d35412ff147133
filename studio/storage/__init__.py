"""Where the studio keeps things: its home folder and its databases."""

"""Jobs that survive: a table, a folder for each, the processes that work on them."""

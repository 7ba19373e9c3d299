"""Published figures, run again: a folder each, with what to run, the paper's own points, and its claims."""

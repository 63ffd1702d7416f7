"""The mini data set."""

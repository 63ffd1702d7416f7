"""The tools of a clone; each runs by its path, as a module, and from tests."""

"""Tools that measure and look into networks."""

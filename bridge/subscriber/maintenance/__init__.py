"""Maintenance: what one leader per group does for all subscribers."""

"""Maintenance: the jobs that one leader per group executes for all subscribers."""

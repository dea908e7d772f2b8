"""Monitoring: presence in Redis, health checks and metrics over HTTP."""

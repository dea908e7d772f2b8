"""A payload that contains a sensitive value."""

from __future__ import annotations

SECRET = "ada.lovelace@example.com"
PAYLOAD = {"user": {"email": SECRET, "name": "Ada"}, "order": 7}
SENSITIVE = ["payload.user.email"]

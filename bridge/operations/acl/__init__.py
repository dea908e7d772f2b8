"""TODO: the face of bridge/operations/acl."""

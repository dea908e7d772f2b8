"""A model checker: every order in which processes of the bridge can send their requests to Redis, up to a bound."""

"""The engine that gives a claim its verdict."""

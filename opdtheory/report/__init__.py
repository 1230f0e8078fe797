"""Tables for the terminal, the self-contained page, and figures."""

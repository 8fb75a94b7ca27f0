"""Methods that choose the length of a nested connector."""

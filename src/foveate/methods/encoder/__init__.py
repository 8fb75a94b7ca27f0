"""Methods that merge tokens inside a vision transformer: one file a method, registered by lying here."""

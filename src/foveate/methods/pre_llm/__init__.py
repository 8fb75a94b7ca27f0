"""Methods before the language model: one file a method, registered by lying here."""

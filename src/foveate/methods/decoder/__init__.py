"""Methods between layers of the language model: one file a method, registered by lying here."""

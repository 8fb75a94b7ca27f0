"""Methods that choose frames of a clip before the processor: one file a method, imported by the registry."""

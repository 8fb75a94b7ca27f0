"""Token reduction methods, one folder a site, one file a method."""

"""Methods that shorten a sequence of visual tokens, one folder a site, one file a method."""

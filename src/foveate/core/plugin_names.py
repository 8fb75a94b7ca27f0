"""Names by which other packages and files bring methods. Reading them imports no torch, unlike the registry."""

from __future__ import annotations

#: Group of entry points by which an installed package offers methods.
GROUP = "foveate.methods"
#: Environment variable with modules and files to import, separated as in PATH, so that new processes do so as well.
IMPORTS = "FOVEATE_IMPORT"

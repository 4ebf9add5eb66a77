"""One node for people: marks, groups, a picture. Pure."""

"""One node as people see it: marks, groups, a picture. Pure."""

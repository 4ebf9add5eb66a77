"""PCI addresses (bus, device, function): what one looks like, and how they are ordered."""

import re

# domain ":" bus ":" device "." function, lower case as XPU Manager and sysfs print it; the
# domain of a VMD has more than four digits
BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", re.ASCII)


def place(bdf: str) -> tuple[int, ...]:
    """Order PCI addresses as numbers: as text, domain 10000 would come before 2000."""
    return tuple(int(part, 16) for part in re.split("[:.]", bdf))

"""Why no link passes, in the words of who knows the flags. Pure."""

from xelink.xpu_manager.classification import Rules, Seen


def no_links(seen: Seen, rules: Rules) -> str:
    """Return which rule holds the Xe Links back that were seen, or that none was."""
    if not seen.held_back:
        return (
            "no Xe Link was seen: is XPU Manager's Pod on the host network (hostNetwork: true)?"
            " GPUs without Xe Links, such as Flex, have none"
        )
    reasons = []
    if seen.one_tile:
        reasons.append(
            f"{seen.one_tile} of one-tile GPUs (Max 1100), which need -allow-subdeviceless-links"
        )
    if seen.narrow:
        reasons.append(f"{seen.narrow} with fewer than {rules.lane_count} lanes (-lane-count)")
    return f"{seen.held_back} Xe Links were seen and none passes: {', '.join(reasons)}"

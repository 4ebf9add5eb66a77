"""Xe Links as the kernel driver knows them: generic netlink family `iaf_ze`."""

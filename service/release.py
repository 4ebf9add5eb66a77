"""The release, said here once for the programs; the metadata of the package take 30 ms to read."""

VERSION = "0.1.0"

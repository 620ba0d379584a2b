//! Holds the file systems of a disk still for a moment.

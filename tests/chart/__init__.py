"""The chart, rendered by helm and read object by object."""

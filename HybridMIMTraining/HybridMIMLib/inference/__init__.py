"""From a scan and a model package to a label map on the scan's own grid."""

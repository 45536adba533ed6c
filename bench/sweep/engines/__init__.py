"""The engines that do the steps of a sweep: one file each."""

"""The families of pretrained generators; one file each."""

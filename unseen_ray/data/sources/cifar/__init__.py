"""CIFAR as torchvision stores it on disk, read without unpickling."""

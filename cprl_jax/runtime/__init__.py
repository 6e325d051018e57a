"""Devices, processes, files and errors: what everything else stands on."""
